"""Sampling answers, batch by batch under one adapter, or from a server for all adapters at once; and judging them.

A vLLM server computes requests under different adapters in one batch, and is fastest with many requests. So all
adapters are trained and compared with transformers first. Then each set of answers is requested in a separate thread,
which makes its artefact under that artefact's lock. The client limits the number of open requests over all threads. If
a server computes batches of several adapters wrongly, the sets are requested one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emlib.config import NoJudge
from emlib.core.background import run_concurrently
from emlib.core.files import read_part, write_part
from emlib.core.progress import bar, say
from emlib.core.records import Answer, MetricScore, Verdict
from emlib.core.step import Step
from emlib.evaluation.rates import OFTEN, WHY_CUT
from emlib.generation.decoder import decoder_for
from emlib.generation.sample import Request, answer_batch, plan
from emlib.judging.judge_batch import JudgeBatch
from emlib.judging.judges import NO_JUDGE, ONLY_THINKS, judge, scores
from emlib.judging.rubrics import JudgeRequest, Score
from emlib.make.backends import TRANSFORMERS, ChosenBackend
from emlib.make.inference import Weights
from emlib.make.session import Session, maker
from emlib.models.load import stop_tokens
from emlib.steps.answers import Answers, MetricScores, SecondVerdicts, Verdicts
from emlib.steps.specs import EvaluationSpec
from emlib.store.artefacts import SCRATCH, Artefact, Facts

Reader = Callable[[list[Answer]], object]  # receives each batch of answers when it is sampled
Sampler = Callable[[list[Request]], list[Answer]]
SERVED_ROWS = 1024  # answers requested from a server between two writes: four times what it computes at once


@dataclass(frozen=True)
class SamplingPlan:
    """How answers are sampled: by which backend, under which adapter (None: the base model), in which batches."""

    choice: ChosenBackend
    adapter: Artefact | None
    batches: list[list[Request]]


@maker.register
def make(step: Answers, session: Session, folder: Path, read: Reader | None = None,
         plan_: SamplingPlan | None = None) -> Facts:
    """Sample all answers of a step. Each batch is written when it is sampled, so that an interrupted run continues."""
    continued = any((folder / SCRATCH).iterdir())
    with session.sampling_clock.share() as seconds:
        answers, choice = sampled(session, step.evaluation, step.adapter, folder / SCRATCH, read, plan_)
    step.records.write(folder, answers)
    cut = sum(answer.finish_reason == "length" for answer in answers)
    if cut > OFTEN * len(answers):
        say(f"{step.title}: {cut} of {len(answers)} answers are cut at the limit of "
            f"{step.evaluation.sampling.max_new_tokens} tokens. {session.once(WHY_CUT)}".rstrip())
    # The adapter may be removed, and the number of its steps is needed later.
    steps = {} if step.adapter is None else {"adapter_steps": session.need(step.adapter).facts.get("steps")}
    return {"answers": len(answers),
            "one_session": not continued,  # else `sampling_seconds` lack those of the interrupted sessions
            "sampling_seconds": round(seconds(), 3),  # their share, where sets are sampled at once
            "tokens": sum(answer.tokens for answer in answers), "cut": cut, **steps, **session.facts, **choice.facts}


def sampled(session: Session, evaluation: EvaluationSpec, adapter: Step | None, scratch: Path,
            read: Reader | None = None, plan_: SamplingPlan | None = None) -> tuple[list[Answer], ChosenBackend]:
    """Sample all answers under an adapter. Return them in the questions' order, and the backend that was used."""
    plan_ = plan_ or _sampling_plan(session, evaluation, adapter)
    folder = scratch if plan_.choice.name == TRANSFORMERS else scratch / plan_.choice.name
    with sampler_under(session, plan_.choice, plan_.adapter) as sample:
        answers = _batch_by_batch(plan_.batches, partial(sample, sampling=evaluation.sampling, seed=evaluation.seed),
                                  folder, read)
    order = {question.id: number for number, question in enumerate(evaluation.questions.all)}
    return sorted(answers, key=lambda a: (order[a.question], a.sample)), plan_.choice


def _sampling_plan(session: Session, evaluation: EvaluationSpec, adapter: Step | None) -> SamplingPlan:
    """Plan how answers are sampled under an adapter. Batches for vLLM are larger, because it batches for itself."""
    found = None if adapter is None else session.need(adapter)
    choice = session.inference.backend_for("generation", Weights.under(found))
    rows = evaluation.sampling.batch_rows if choice.name == TRANSFORMERS else SERVED_ROWS
    return SamplingPlan(choice, found, plan(evaluation.questions.all, evaluation.samples, session.chat.tokenizer, rows))


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
    yield partial(session.inference.client.answers, session.inference.model(Weights.under(adapter)), tokenizer,
                  ends=stop_tokens(session.chat.model, tokenizer),
                  width=session.chat.model.config.get_text_config().vocab_size)


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
def answered(session: Session, readers: Mapping[Answers, Reader | None]) -> Iterator[Iterator[Artefact]]:
    """Give the answers of each step, in order. Missing ones are sampled, and the step's reader gets each batch."""
    inference = session.inference
    plans = _plans(session, readers) if inference.generation_backend().name != TRANSFORMERS else {}
    served = [step for step, one in plans.items() if one.choice.name != TRANSFORMERS]
    calls = {step: partial(_answer, session, step, read, plans.get(step)) for step, read in readers.items()}
    if not inference.mixes(Weights.under(plans[step].adapter) for step in served):
        yield (call() for call in calls.values())
        return
    with run_concurrently([calls[step] for step in served], inference.stop) as found:
        yield (next(found) if step in served else call() for step, call in calls.items())


def _answer(session: Session, step: Answers, read: Reader | None, plan_: SamplingPlan | None) -> Artefact:
    if step.adapter is not None:
        session.need(step.adapter)  # before the answers' lock is taken, because training takes long
    return session.store.get(step, lambda folder: make(step, session, folder, read, plan_))


def _plans(session: Session, steps: Iterable[Answers]) -> dict[Answers, SamplingPlan]:
    """Plan how those answers are sampled that are not in the store, with all work that needs the model."""
    missing = [step for step in steps if session.store.find(step) is None]
    session.inference.expect(len({step.adapter for step in missing} - {None}))
    for step in missing:
        if step.adapter is not None:
            session.need(step.adapter)
    return {step: _sampling_plan(session, step.evaluation, step.adapter) for step in missing}


@maker.register
def verdicts(step: Verdicts, session: Session, folder: Path) -> Facts:
    """Judge the answers; a second judge reads only those chosen for it."""
    answers = session.read(step.answers)
    found = judge_part(step, session, step.chosen(answers) if isinstance(step, SecondVerdicts) else answers)
    step.records.write(folder, found)
    return {"asked": len(found), "scored": sum(verdict.scored for verdict in found)}


@maker.register
def metric(step: MetricScores, session: Session, folder: Path) -> Facts:
    """Have the answers scored on one metric."""
    answers = session.read(step.answers)
    found = _metric_scores(step, session, answers)
    step.records.write(folder, [
        MetricScore(answer.question, answer.sample, score.value, score.reason, score.note)
        for answer, score in zip(answers, found, strict=True)])
    return {"asked": len(answers)}


def _metric_scores(step: MetricScores, session: Session, answers: Sequence[Answer]) -> Sequence[Score]:
    if isinstance(step.judge, NoJudge):
        return [Score(None, reason=NO_JUDGE)] * len(answers)
    questions = {question.id: question for question in step.answers.evaluation.questions.all}
    given = [(answer, final) for answer in answers if (final := answer.final) is not None]
    found = iter(scores(step.judge, [
        JudgeRequest(step.metric, step.prompts.value[answer.question], questions[answer.question], final,
                     wants_label=step.has_labels) for answer, final in given], session.budget))
    return [Score(None, reason=ONLY_THINKS) if answer.final is None else next(found) for answer in answers]


def judge_part(step: Verdicts, session: Session, answers: Sequence[Answer]) -> list[Verdict]:
    """Judge some of the answers. Their scores are cached, so that judging all answers later reuses them."""
    batch = JudgeBatch(step.answers.evaluation.questions.all, answers, step.assessment.rubrics.value)
    return judge(step.assessment.judge, step.assessment.trait.value, batch, session.budget)
