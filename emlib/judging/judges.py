"""The judge of a profile: from answers to verdicts, and for language-model judges from requests to scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from emlib.config import JudgeSpec, LexiconJudge, LlmJudge, LocalJudge, NoJudge, OpenAIJudge, Trait
from emlib.core import paths
from emlib.core.digests import of_text, of_value
from emlib.core.errors import JudgeError
from emlib.core.records import Verdict
from emlib.judging import lexicon
from emlib.judging.cache import Cache
from emlib.judging.judge_batch import NOT_HAD, JudgeBatch, Scorer, judge_answers, scores_of
from emlib.judging.money import Budget
from emlib.judging.rubrics import JudgeRequest, Rubrics, Score, file_rubrics, read_rubrics, trait_rubrics
from emlib.models.identity import identity as model_identity

NO_JUDGE = "no judge configured"
ONLY_THINKS = "the think block never closes, so that there is no answer"


def scores_file() -> Path:
    """Return the path of the score cache, which all judges and studies share."""
    return paths.runs() / "scores.sqlite"


def reads(spec: JudgeSpec) -> bool:
    """Return whether a judge is a language model, which needs a rubric."""
    return isinstance(spec, OpenAIJudge | LocalJudge)


def rubrics(spec: JudgeSpec, trait: Trait, general: Path) -> Rubrics:
    """Return the rubrics of a profile's judge; `general` is the file of its general questions.

    Raises:
        JudgeError: the judge pins other prompts.
    """
    if not isinstance(spec, OpenAIJudge | LocalJudge) or spec.rubric == "trait":
        found = trait_rubrics(trait)
    else:
        found = read_rubrics(general) if spec.rubric == "questions" else file_rubrics(Path(spec.rubric))
    if isinstance(spec, OpenAIJudge | LocalJudge):
        of = {"questions": general.name, "trait": "the trait"}.get(spec.rubric, spec.rubric)
        for rubric in (found.others, *found.own.values()):
            refuse_another(spec.pinned.rubric, of_value(asdict(rubric)), f"rubric (that of {of})")
    return found


def refuse_another(pinned: str | None, found: str, what: str) -> None:
    """Raise where a judge pins a digest, and what it is to judge with has another one."""
    if pinned is not None and found != pinned:
        raise JudgeError(f"The judge pins another {what} than there is: SHA-256 {pinned}, and here it is {found}. Its "
                         "scores would not be those of the pinned judge. Restore what it pins, or take another judge.")


def identity(spec: JudgeSpec) -> dict[str, Any]:
    """Return everything about a judge that determines its scores, besides prompt, question and answer."""
    if isinstance(spec, OpenAIJudge):
        return spec.identity
    if isinstance(spec, LocalJudge):
        return {"kind": spec.kind, "model": model_identity(spec.model)}
    return {"kind": spec.kind}


def judge(spec: JudgeSpec, trait: Trait, batch: JudgeBatch, budget: str) -> list[Verdict]:
    """Return one verdict per answer, in their order. An answer without a score has None and a reason, never 0.

    What an answer thinks before it answers is not judged. Where its think block never closes, it has no verdict.

    Args:
        spec: the profile's judge.
        trait: whose markers the lexicon judge counts.
        batch: the answers, their questions and the rubrics.
        budget: the profile's name, whose budget a paid judge spends.

    Raises:
        JudgeError: a judge behind a network cannot continue. All scores received so far are kept.
    """
    if isinstance(spec, NoJudge):
        return [Verdict(answer.question, answer.sample, None, None, NO_JUDGE) for answer in batch.answers]
    finished = [answer.without_thinking() for answer in batch.answers if answer.final is not None]
    found = iter(_judged(spec, trait, replace(batch, answers=finished), budget))
    return [next(found) if answer.final is not None else
            Verdict(answer.question, answer.sample, None, None, ONLY_THINKS) for answer in batch.answers]


def _judged(spec: LexiconJudge | LlmJudge, trait: Trait, batch: JudgeBatch, budget: str) -> list[Verdict]:
    if isinstance(spec, LexiconJudge):
        refuse_another(spec.pinned.markers, of_value(list(trait.markers)), "list of markers")
        return lexicon.judge(batch.answers, trait.markers)
    with _asking(spec, budget) as (cache, scorer):
        verdicts = judge_answers(batch, identity(spec), cache, scorer)
    _stop_at_gaps(spec, [verdict.reason for verdict in verdicts], "answers could not be judged")
    return verdicts


def scores(spec: LlmJudge, requests: Sequence[JudgeRequest], budget: str) -> list[Score]:
    """Return one score per request, in their order, for any metrics; its value is None, with a reason, where it failed.

    Raises:
        JudgeError: as `judge`.
    """
    with _asking(spec, budget) as (cache, scorer):
        found = scores_of(requests, identity(spec), cache, scorer)
    _stop_at_gaps(spec, [score.reason for score in found], "requests to the judge failed")
    return found


@contextmanager
def _asking(spec: LlmJudge, budget: str) -> Iterator[tuple[Cache, Scorer]]:
    """Open the score cache and make the scorer for missing scores."""
    with Cache(scores_file()) as cache:
        if isinstance(spec, LocalJudge):
            from emlib.judging import local  # loads torch, and the model if a score is missing

            yield cache, local.scorer(spec, lambda template: refuse_another(
                spec.pinned.template, of_text(template), "chat template"))
        else:
            from emlib.judging.api import ApiJudge
            from emlib.judging.batches import BatchJudge

            judge_of = BatchJudge if spec.batch else ApiJudge
            yield cache, judge_of(spec, Budget(cache, budget, spec.max_usd))


def _stop_at_gaps(spec: LlmJudge, reasons: Sequence[str | None], failure: str) -> None:
    """Stop where scores are missing that a later run may get, unless the profile says otherwise."""
    missing = [reason for reason in reasons if NOT_HAD in (reason or "")]
    if missing and isinstance(spec, OpenAIJudge) and spec.unanswered == "stop":
        raise JudgeError(f"{len(missing)} of {len(reasons)} {failure}: {missing[0]}. All others are kept. Run again: "
                         "only these are requested. Or set 'unanswered: unscored' for the judge: they then count as "
                         "unscored.")
