"""Sampling answers: batch by batch under one adapter, or, where a server samples, for all adapters at once.

A vLLM server computes requests under different adapters in one batch, and is at its best while it has many. So every
adapter is trained and proved first, where the model is; then each set of answers is asked for in a thread of its own,
which makes its artefact under its own lock as ever. The client bounds what is under way, over all of them. Where a
server does not compute several adapters rightly in one batch, one set is asked for after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emlib.core.background import run_concurrently
from emlib.core.files import read_records, write_records
from emlib.core.progress import bar
from emlib.core.records import Answer
from emlib.core.step import Step
from emlib.generation.sample import Request, answer_batch, plan
from emlib.make.backends import PLAIN, Choice
from emlib.models.load import stop_tokens
from emlib.steps.answers import Answers
from emlib.steps.specs import EvaluationSpec
from emlib.store.artefacts import SCRATCH, Artefact, Facts

if TYPE_CHECKING:
    from emlib.make.session import Session

Reader = Callable[[list[Answer]], object]  # is given answers as they come
Draw = Callable[[list[Request]], list[Answer]]
SERVED_ROWS = 1024  # answers that are asked of a server between two writes: four times what it computes at once


@dataclass(frozen=True)
class SamplingPlan:
    """How answers are sampled: by which backend, under which adapter, in which batches, and what samples them."""

    choice: Choice
    under: tuple[str | None, Path | None]
    batches: list[list[Request]]
    begun: AbstractContextManager[Draw]


@dataclass(frozen=True)
class GenerationRequest:
    """Answers to be had. `read` is given each batch of them as soon as it is drawn."""

    step: Answers
    read: Reader | None = None


def make(step: Answers, session: Session, folder: Path, read: Reader | None = None,
         plan_: SamplingPlan | None = None) -> Facts:
    """Every answer of a step; one file a batch is kept meanwhile, so that little is lost if this is stopped."""
    begun = any((folder / SCRATCH).iterdir())
    answers, choice = sampled(session, step.evaluation, step.adapter, folder / SCRATCH, read, plan_)
    write_records(folder / "answers.jsonl", answers)
    return {"answers": len(answers), "one_sitting": not begun, "tokens": sum(answer.tokens for answer in answers),
            "cut": sum(answer.finish_reason == "length" for answer in answers), **session.facts, **choice.facts}


def sampled(session: Session, evaluation: EvaluationSpec, adapter: Step | None, scratch: Path,
            read: Reader | None = None, plan_: SamplingPlan | None = None) -> tuple[list[Answer], Choice]:
    """Every answer under an adapter, in the questions' order, and what sampled them."""
    plan_ = plan_ or sampling_plan(session, evaluation, adapter)
    folder = scratch if plan_.choice.name == PLAIN else scratch / plan_.choice.name
    with plan_.begun as draw:
        answers = _batch_by_batch(plan_.batches, draw, folder, read)
    order = {question.id: number for number, question in enumerate(evaluation.questions.all)}
    return sorted(answers, key=lambda a: (order[a.question], a.sample)), plan_.choice


def sampling_plan(session: Session, evaluation: EvaluationSpec, adapter: Step | None) -> SamplingPlan:
    """How answers are sampled under an adapter. vLLM batches for itself: its batches are larger."""
    found = None if adapter is None else session.need(adapter)
    name, place = (None, None) if found is None else (found.key, found.checked())
    choice = session.inference.under("generation", name, place)
    sampling, tokenizer = evaluation.sampling, session.chat.tokenizer
    rows = sampling.batch_rows if choice.name == PLAIN else SERVED_ROWS
    batches = plan(evaluation.questions.all, evaluation.samples, tokenizer, rows)
    if choice.name == PLAIN:
        return SamplingPlan(choice, (name, place), batches, _by_model(session, evaluation, found))
    ends = stop_tokens(session.chat.model, tokenizer)
    return SamplingPlan(choice, (name, place), batches, nullcontext(partial(
        session.inference.client.answers, session.inference.model(name, place), tokenizer,
        sampling=sampling, seed=evaluation.seed, ends=ends)))


@contextmanager
def _by_model(session: Session, evaluation: EvaluationSpec, adapter: Artefact | None) -> Iterator[Draw]:
    with session.model_under(adapter) as model:
        yield partial(answer_batch, model, session.chat.tokenizer, sampling=evaluation.sampling, seed=evaluation.seed)


def _batch_by_batch(batches: Sequence[list[Request]], draw: Draw, scratch: Path, read: Reader | None) -> list[Answer]:
    answers: list[Answer] = []
    for number, batch in enumerate(bar(batches, "answers", "batch", total=len(batches))):
        path = scratch / f"batch-{number:04d}.jsonl"
        if not path.is_file():
            write_records(path, draw(batch))
        drawn = read_records(path, Answer)
        answers += drawn
        if read is not None and len(batches) > 1:  # a set of one batch is read as a set
            read(drawn)
    return answers


@contextmanager
def answered(session: Session, requests: Sequence[GenerationRequest]) -> Iterator[Iterator[Artefact]]:
    """The answers to each request, in their order, made where they are not there."""
    inference = session.inference
    plans = _ready(session, requests) if inference.drawing().name != PLAIN else [None] * len(requests)
    served = [one for one in plans if one is not None and one.choice.name != PLAIN]
    works = [(partial(_answer, session, request, one), one in served)
             for request, one in zip(requests, plans, strict=True)]
    if not inference.mixes(one.under for one in served):
        yield (work() for work, _ in works)
        return
    with run_concurrently([work for work, by_server in works if by_server], inference.stop) as found:
        yield (next(found) if by_server else work() for work, by_server in works)


def _answer(session: Session, request: GenerationRequest, plan_: SamplingPlan | None) -> Artefact:
    step = request.step
    if step.adapter is not None:
        session.need(step.adapter)  # before the answers' lock is taken: training lasts longer
    return session.store.get(step, lambda folder: make(step, session, folder, request.read, plan_))


def _ready(session: Session, requests: Sequence[GenerationRequest]) -> list[SamplingPlan | None]:
    """How each is sampled, all that needs the model or its tokenizer done; None where the answers are there."""
    missing = [request.step for request in requests if session.store.find(request.step) is None]
    session.inference.expect(len({step.adapter for step in missing} - {None}))
    for step in missing:
        if step.adapter is not None:
            session.need(step.adapter)
    plans = {step: sampling_plan(session, step.evaluation, step.adapter) for step in missing}
    return [plans.get(request.step) for request in requests]
