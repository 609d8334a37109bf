"""The judge of a profile: from answers to verdicts, and for language-model judges from requests to scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeGuard

from emlib.config import JudgeSpec, LexiconJudge, LlmJudge, LocalJudge, NoJudge, OpenAIJudge, Trait
from emlib.core import paths
from emlib.core.digests import of_text, of_value
from emlib.core.errors import JudgeError
from emlib.core.progress import say
from emlib.core.records import Verdict
from emlib.judging import lexicon
from emlib.judging.cache import Cache
from emlib.judging.judge_batch import JudgeBatch, Keep, Scorer, scores_of
from emlib.judging.money import Budget
from emlib.judging.rubrics import JudgeRequest, Rubrics, Score, file_rubrics, read_rubrics, trait_rubrics

SCORES = "scores.sqlite"  # in the folder of results
NO_JUDGE = "no judge configured"
ONLY_THINKS = "the think block never closes, so that there is no answer"


def scores_file() -> Path:
    """Return the path of the score cache, which all judges and studies share."""
    return paths.runs() / SCORES


def reads(spec: JudgeSpec) -> TypeGuard[LlmJudge]:
    """Return whether a judge is a language model, which needs a rubric."""
    return isinstance(spec, OpenAIJudge | LocalJudge)


def rubrics(spec: JudgeSpec, trait: Trait, general: Path) -> Rubrics:
    """Return the rubrics of a profile's judge; `general` is the file of its general questions.

    Raises:
        JudgeError: the judge pins other prompts.
    """
    if not reads(spec):
        return trait_rubrics(trait)
    if spec.rubric == "trait":
        of, found = "the trait", trait_rubrics(trait)
    elif spec.rubric == "questions":
        of, found = general.name, read_rubrics(general)
    else:
        of, found = spec.rubric, file_rubrics(Path(spec.rubric))
    for rubric in (found.others, *found.own.values()):
        _refuse_another(spec.pinned.rubric, of_value(asdict(rubric)), f"rubric (that of {of})")
    return found


def _refuse_another(pinned: str | None, found: str, what: str) -> None:
    """Raise where a judge pins a digest, and what it is to judge with has another one."""
    if pinned is not None and found != pinned:
        raise JudgeError(f"The judge pins another {what} than there is: SHA-256 {pinned}, and here it is {found}. Its "
                         "scores would not be those of the pinned judge. Restore what it pins, or take another judge.")


def judge(spec: JudgeSpec, trait: Trait, batch: JudgeBatch, budget: str) -> list[Verdict]:
    """Return one verdict per answer, in their order. An answer without a score has None and a reason, never 0.

    What an answer thinks before it answers is not judged. Where its think block never closes, it has no verdict. The
    lexicon judge counts the markers of `trait`; a paid judge spends the budget of the profile `budget`.

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
        _refuse_another(spec.pinned.markers, of_value(list(trait.markers)), "list of markers")
        return lexicon.judge(batch.answers, trait.markers)
    return batch.verdicts(scores(spec, [*batch.requests()], budget))


def scores(spec: LlmJudge, requests: Sequence[JudgeRequest], budget: str) -> list[Score]:
    """Return one score per request, in their order, for any metrics; its value is None, with a reason, where it failed.

    Errors are those of `judge`.
    """
    identity = spec.identity
    with Cache(scores_file()) as cache:
        found = scores_of(requests, identity, cache, _scorer(spec, identity, cache, budget))
        if isinstance(spec, OpenAIJudge) and cache.has_batch_to_settle(identity, spec.address):
            _settle(spec, Budget(cache, budget, spec.max_usd))
    missing = [score.reason for score in found if not score.lasting]
    if missing and isinstance(spec, OpenAIJudge) and spec.unanswered == "stop":
        raise JudgeError(f"{len(missing)} of {len(found)} requests to the judge failed: {missing[0]}. All others are "
                         "kept. Run again: only these are requested. Or set 'unanswered: unscored' for the judge: they "
                         "then count as unscored.")
    return found


def _scorer(spec: LlmJudge, identity: Mapping[str, Any], cache: Cache, budget: str) -> Scorer:
    """Return what is asked for the scores that the cache lacks; `identity` is the judge's, as their keys have it."""
    if isinstance(spec, LocalJudge):
        from emlib.judging import local  # loads torch, and the model if a score is missing

        return local.scorer(spec, of_value(identity["model"]), lambda template: _refuse_another(
            spec.pinned.template, of_text(template), "chat template"))
    from emlib.judging.api import ApiJudge
    from emlib.judging.batches import BatchJudge

    if others := cache.other_servers(identity, spec.address):
        say(f"The judge {spec.model} is asked at {spec.address} for the first time, and its scores from "
            f"{', '.join(others)} count as its own. If another model has this name there, give it another name.")
    account = Budget(cache, budget, spec.max_usd)
    by_batch, singly = BatchJudge(spec, account), ApiJudge(spec, account)

    def collect_and_ask(requests: Sequence[JudgeRequest], keep: Keep) -> None:
        if left := by_batch.collect(requests, keep):
            singly(left, keep)

    return by_batch if spec.batch else collect_and_ask


def _settle(spec: OpenAIJudge, account: Budget) -> None:
    """Collect finished batches for their bills. All scores are there, so that a failure stops nothing."""
    from emlib.judging.batches import BatchJudge

    try:
        BatchJudge(spec, account).collect([], lambda request, score: None, tries=0)
    except JudgeError as error:
        say(f"{spec.model}: what a batch cost is not known yet. {error}")
