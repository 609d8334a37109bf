"""Sampling answers: batch by batch under one adapter, or, from a server, for all adapters at once.

A vLLM server computes requests under different adapters in one batch, and is fastest with many requests. So all
adapters are trained and compared with transformers first. Then each set of answers is requested in a separate thread,
which makes its artefact under that artefact's lock. The client limits the number of open requests over all threads. If
a server computes batches of several adapters wrongly, the sets are requested one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emlib.core.background import run_concurrently
from emlib.core.checked_lines import read_part, write_part
from emlib.core.progress import bar, say
from emlib.core.records import Answer
from emlib.core.step import Step
from emlib.evaluation.rates import OFTEN, WHY_CUT
from emlib.generation.decoder import decoder_for
from emlib.generation.sample import Request, answer_batch, plan
from emlib.make.backends import TRANSFORMERS, ChosenBackend
from emlib.make.session import Session
from emlib.models.load import stop_tokens
from emlib.steps.answers import Answers
from emlib.steps.specs import EvaluationSpec
from emlib.store.artefacts import SCRATCH, Artefact, Facts

Reader = Callable[[list[Answer]], object]  # receives each batch of answers when it is sampled
Sampler = Callable[[list[Request]], list[Answer]]
SERVED_ROWS = 1024  # answers requested from a server between two writes: four times what it computes at once


@dataclass(frozen=True)
class SamplingPlan:
    """How answers are sampled.

    Attributes:
        choice: the backend.
        adapter: the name and the folder of the adapter; None and None for the base model.
        batches: the requests, batch by batch.
        sampler: a context that gives the function which samples a batch.
    """

    choice: ChosenBackend
    adapter: tuple[str | None, Path | None]
    batches: list[list[Request]]
    sampler: AbstractContextManager[Sampler]


@dataclass(frozen=True)
class GenerationRequest:
    """A request for the answers of a step. `read` is called with each batch as soon as it is sampled."""

    step: Answers
    read: Reader | None = None


def make(step: Answers, session: Session, folder: Path, read: Reader | None = None,
         plan_: SamplingPlan | None = None) -> Facts:
    """Sample all answers of a step. Each batch is written when it is sampled, so that an interrupted run continues."""
    continued = any((folder / SCRATCH).iterdir())
    answers, choice = sampled(session, step.evaluation, step.adapter, folder / SCRATCH, read, plan_)
    step.records.write(folder, answers)
    cut = sum(answer.finish_reason == "length" for answer in answers)
    if cut > OFTEN * len(answers):
        say(f"{step.title}: {cut} of {len(answers)} answers are cut at the limit of "
            f"{step.evaluation.sampling.max_new_tokens} tokens. {WHY_CUT}")
    # Stored names stay as they are: "one_sitting" is whether it was sampled in one go. The adapter may be removed.
    steps = {} if step.adapter is None else {"adapter_steps": session.need(step.adapter).facts.get("steps")}
    return {"answers": len(answers), "one_sitting": not continued, "tokens": sum(answer.tokens for answer in answers),
            "cut": cut, **steps, **session.facts, **choice.facts}


def sampled(session: Session, evaluation: EvaluationSpec, adapter: Step | None, scratch: Path,
            read: Reader | None = None, plan_: SamplingPlan | None = None) -> tuple[list[Answer], ChosenBackend]:
    """Sample all answers under an adapter. Return them in the questions' order, and the backend that was used."""
    plan_ = plan_ or sampling_plan(session, evaluation, adapter)
    folder = scratch if plan_.choice.name == TRANSFORMERS else scratch / plan_.choice.name
    with plan_.sampler as sample:
        answers = _batch_by_batch(plan_.batches, sample, folder, read)
    order = {question.id: number for number, question in enumerate(evaluation.questions.all)}
    return sorted(answers, key=lambda a: (order[a.question], a.sample)), plan_.choice


def sampling_plan(session: Session, evaluation: EvaluationSpec, adapter: Step | None) -> SamplingPlan:
    """Plan how answers are sampled under an adapter. Batches for vLLM are larger, because it batches for itself."""
    found = None if adapter is None else session.need(adapter)
    name, folder = (None, None) if found is None else (found.key, found.folder)
    choice = session.inference.backend_for("generation", name, folder)
    sampling = evaluation.sampling
    rows = sampling.batch_rows if choice.name == TRANSFORMERS else SERVED_ROWS
    batches = plan(evaluation.questions.all, evaluation.samples, session.chat.tokenizer, rows)
    return SamplingPlan(choice, (name, folder), batches, _sampler(session, choice, found, evaluation))


@contextmanager
def sampler_under(session: Session, choice: ChosenBackend,
                  adapter: Artefact | None) -> Iterator[Callable[..., list[Answer]]]:
    """Give the function that samples answers under an adapter, to requests, with `sampling` and `seed` by name."""
    tokenizer = session.chat.tokenizer
    if choice.name == TRANSFORMERS:
        with session.model_under(adapter) as model:
            decoder, reason = decoder_for(model)
            if reason:
                say(f"answers are sampled by the model's own forward pass, and not by the decoder for CPUs: {reason}")
            yield partial(answer_batch, model, tokenizer, decoder=decoder)
        return
    named = (None, None) if adapter is None else (adapter.key, adapter.folder)
    yield partial(session.inference.client.answers, session.inference.model(*named), tokenizer,
                  ends=stop_tokens(session.chat.model, tokenizer),
                  width=session.chat.model.config.get_text_config().vocab_size)


@contextmanager
def _sampler(session: Session, choice: ChosenBackend, adapter: Artefact | None,
             evaluation: EvaluationSpec) -> Iterator[Sampler]:
    with sampler_under(session, choice, adapter) as sample:
        yield partial(sample, sampling=evaluation.sampling, seed=evaluation.seed)


def _batch_by_batch(batches: Sequence[list[Request]], sample: Sampler, scratch: Path,
                    read: Reader | None) -> list[Answer]:
    answers: list[Answer] = []
    for number, batch in enumerate(bar(batches, "answers", "batch", total=len(batches))):
        path = scratch / f"batch-{number:04d}.jsonl"
        new = read_part(path, Answer, len(batch))
        if new is None:
            new = sample(batch)
            write_part(path, new)
        answers += new
        if read is not None and len(batches) > 1:  # a single batch is judged with the whole set
            read(new)
    return answers


@contextmanager
def answered(session: Session, requests: Sequence[GenerationRequest]) -> Iterator[Iterator[Artefact]]:
    """Give the answers to each request, in the order of the requests. Missing answers are sampled."""
    inference = session.inference
    plans = _plans(session, requests) if inference.generation_backend().name != TRANSFORMERS else [None] * len(requests)
    served = [one for one in plans if one is not None and one.choice.name != TRANSFORMERS]
    calls = [(partial(_answer, session, request, one), one in served)
             for request, one in zip(requests, plans, strict=True)]
    if not inference.mixes(one.adapter for one in served):
        yield (call() for call, _ in calls)
        return
    with run_concurrently([call for call, by_server in calls if by_server], inference.stop) as found:
        yield (next(found) if by_server else call() for call, by_server in calls)


def _answer(session: Session, request: GenerationRequest, plan_: SamplingPlan | None) -> Artefact:
    step = request.step
    if step.adapter is not None:
        session.need(step.adapter)  # before the answers' lock is taken, because training takes long
    return session.store.get(step, lambda folder: make(step, session, folder, request.read, plan_))


def _plans(session: Session, requests: Sequence[GenerationRequest]) -> list[SamplingPlan | None]:
    """Plan how each request is sampled, with all work that needs the model; None if the answers are in the store."""
    missing = [request.step for request in requests if session.store.find(request.step) is None]
    session.inference.expect(len({step.adapter for step in missing} - {None}))
    for step in missing:
        if step.adapter is not None:
            session.need(step.adapter)
    plans = {step: sampling_plan(session, step.evaluation, step.adapter) for step in missing}
    return [plans.get(request.step) for request in requests]
