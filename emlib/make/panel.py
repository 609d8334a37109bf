"""Evaluating a model on a standard benchmark: a server on loopback offers it, and inspect_ai asks it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from emlib.config import Sampling
from emlib.core.digests import compared
from emlib.core.files import append, line_of, value_of
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
from emlib.models.context import context_of
from emlib.steps.measures import PanelResult
from emlib.store.artefacts import SCRATCH, Artefact, Facts

SEED = 0  # of answers to requests without a seed
UNLIMITED = 2**20  # tokens, where the model states no limit
COUNTS = "counts.jsonl"  # what each request adds to the counts, in all sessions of an evaluation


@maker.register
def make(step: PanelResult, session: Session, folder: Path) -> Facts:
    """Evaluate the model; keep inspect's log, and record its scores."""
    adapter = None if step.adapter is None else session.need(step.adapter)
    most = context_of(session.chat.model) or UNLIMITED  # tokens of a prompt and its answer
    session.inference.expect_conversation(most)
    choice = session.inference.backend_for("generation", Weights.under(adapter))
    connections = step.defaults.batch_rows if choice.name == TRANSFORMERS else AT_ONCE
    if choice.name != TRANSFORMERS:
        session.inference.client.refuse_shorter(most)
    work, task = folder / SCRATCH, step.task
    interrupted = len(list(work.glob("logs/*.eval")))
    say(f"{step.title}: {task.samples} samples" + (", continued" if interrupted else ""))
    with _sampler(session, choice, adapter, connections) as sample:
        model = ServedModel("untrained" if step.adapter is None else re.sub(r"[^\w.+-]+", "-", step.adapter.title),
                            session.chat.tokenizer, most, step.defaults, sample, interrupted,
                            partial(_note, work / COUNTS))
        with serving(model) as server:
            try:
                found = evaluate(task, model.name, server.url, server.key, connections, work,
                                 {"title": step.title, "key": step.key})
            except Exception as error:
                raise error from server.failure  # the model's own error, if it had one
    os.replace(work / "logs" / found["log"], folder / found["log"])
    counts = _noted(work / COUNTS)
    if counts["cut"] or counts["too_long"]:
        say(f"{step.title}: {counts['cut']} of {counts['answers']} answers are cut at the token limit, and "
            f"{counts['too_long']} prompts are too long for the model, which counts against it.")
    return {"task": compared(task), "continued": bool(interrupted), **found, **counts,
            **session.facts, **choice.facts}


def _note(path: Path, counts: Mapping[str, int]) -> None:
    append(path, f"\n{line_of(counts)}")  # a line of its own, also after the incomplete one of a killed session


def _noted(path: Path) -> dict[str, int]:
    """Sum up the counts of all sessions, without an incomplete last line of a killed one, whose request is repeated."""
    total: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        with suppress(ValueError):  # empty lines have no value either
            total.update(value_of(line))
    return {name: total[name] for name in ("requests", "answers", "cut", "too_long")}


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
