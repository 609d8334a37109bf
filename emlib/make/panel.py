"""Evaluating a model on a standard benchmark: a server on loopback offers it, and inspect_ai asks it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from emlib.config import Sampling
from emlib.core.progress import say
from emlib.core.records import Answer
from emlib.evaluation.panel import evaluate
from emlib.generation.chat_completions import Sampler, ServedModel
from emlib.generation.openai_server import batching, serving
from emlib.generation.sample import Request
from emlib.generation.vllm import AT_ONCE
from emlib.make.answers import sampler_under
from emlib.make.backends import TRANSFORMERS, ChosenBackend
from emlib.make.inference import Weights
from emlib.make.session import Session, maker
from emlib.steps.measures import PanelResult
from emlib.store.artefacts import SCRATCH, Artefact, Facts

SEED = 0  # of answers to requests without a seed


@maker.register
def make(step: PanelResult, session: Session, folder: Path) -> Facts:
    """Evaluate the model; keep inspect's log, and record its scores."""
    adapter = None if step.adapter is None else session.need(step.adapter)
    choice = session.inference.backend_for("generation", Weights.under(adapter))
    connections = step.defaults.batch_rows if choice.name == TRANSFORMERS else AT_ONCE
    most = int(session.chat.model.config.get_text_config().max_position_embeddings)  # tokens of a prompt and its answer
    if choice.name != TRANSFORMERS:
        most = min(most, session.inference.longest)
    work, task = folder / SCRATCH, step.task
    interrupted = len(list(work.glob("logs/*.eval")))
    say(f"{step.title}: {task.samples} samples" + (", continued" if interrupted else ""))
    with _sampler(session, choice, adapter, connections) as sample:
        model = ServedModel("untrained" if step.adapter is None else re.sub(r"[^\w.+-]+", "-", step.adapter.title),
                            session.chat.tokenizer, most, step.defaults, sample, interrupted)
        with serving(model) as server:
            try:
                found = evaluate(task, model.name, server.url, server.key, connections, work,
                                 {"title": step.title, "key": step.key})
            except Exception as error:
                raise error from server.failure  # the model's own error, if it had one
    os.replace(work / "logs" / found["log"], folder / found["log"])
    counts = {name: model.counts[name] for name in ("requests", "answers", "cut", "too_long")}
    if counts["cut"] or counts["too_long"]:
        say(f"{step.title}: {counts['cut']} of {counts['answers']} answers are cut at the token limit, and "
            f"{counts['too_long']} prompts are too long for the model, which counts against it.")
    return {"task": task.key, "weights": step.weights, "continued": bool(interrupted), **found, **counts,
            **session.facts, **choice.facts}


@contextmanager
def _sampler(session: Session, choice: ChosenBackend, adapter: Artefact | None, rows: int) -> Iterator[Sampler]:
    """Give the function that samples answers: in batches of our own, or from vLLM, which batches for itself."""
    with sampler_under(session, choice, adapter) as under:
        def sample(requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
            return under(requests, sampling=sampling, seed=SEED)

        if choice.name == TRANSFORMERS:
            with batching(sample, rows) as batched:
                yield batched
        else:
            yield sample
