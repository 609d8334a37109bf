"""The judge of a profile: answers in, verdicts out; and any judge that is a language model: requests in, scores out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emlib.config import JudgeSpec, LexiconJudge, LlmJudge, LocalJudge, NoJudge, OpenAIJudge, Trait
from emlib.core import paths
from emlib.core.errors import JudgeError
from emlib.core.records import Verdict
from emlib.judging import lexicon
from emlib.judging.cache import Cache
from emlib.judging.judge_batch import NOT_HAD, JudgeBatch, Scorer, judge_answers, scores_of
from emlib.judging.money import Budget
from emlib.judging.rubrics import JudgeRequest, Rubrics, Score, file_rubrics, read_rubrics, trait_rubrics
from emlib.models.identity import identity as model_identity

NO_JUDGE = "no judge configured"


def scores_file() -> Path:
    """Where the scores of all judges are kept, whichever study asked for them."""
    return paths.runs() / "scores.sqlite"


def reads(spec: JudgeSpec) -> bool:
    """Whether a judge is a language model, which goes by a rubric."""
    return isinstance(spec, OpenAIJudge | LocalJudge)


def rubrics(spec: JudgeSpec, trait: Trait, general: Path) -> Rubrics:
    """What the judge of a profile goes by; `general` is the file of its general questions."""
    if isinstance(spec, OpenAIJudge | LocalJudge) and spec.rubric == "questions":
        return read_rubrics(general)
    if isinstance(spec, OpenAIJudge | LocalJudge) and spec.rubric != "trait":
        return file_rubrics(Path(spec.rubric))
    return trait_rubrics(trait)


def identity(spec: JudgeSpec) -> dict[str, Any]:
    """What of a judge determines its scores, besides what it reads."""
    if isinstance(spec, OpenAIJudge):
        return spec.identity
    if isinstance(spec, LocalJudge):
        return {"kind": spec.kind, "model": model_identity(spec.model)}
    return spec.model_dump(mode="json")


def judge(spec: JudgeSpec, trait: Trait, sheet: JudgeBatch, account: str) -> list[Verdict]:
    """One verdict an answer, in their order. What cannot be scored is None with a reason, never 0.

    Args:
        spec: the profile's judge.
        trait: whose markers the lexicon judge counts.
        sheet: the answers, their questions and the rubrics.
        account: the profile's name, on whose account a paid judge works.

    Raises:
        JudgeError: a judge that is asked over a network cannot go on. Every score it gave is kept.
    """
    if isinstance(spec, NoJudge):
        return [Verdict(answer.question, answer.sample, None, None, NO_JUDGE) for answer in sheet.answers]
    if isinstance(spec, LexiconJudge):
        return lexicon.judge(sheet.answers, trait.markers)
    with _asking(spec, account) as (cache, scorer):
        verdicts = judge_answers(sheet, identity(spec), cache, scorer)
    _stop_at_gaps(spec, [verdict.reason for verdict in verdicts], "answers could not be judged")
    return verdicts


def scores(spec: LlmJudge, requests: Sequence[JudgeRequest], account: str) -> list[Score]:
    """One score a request, in their order, for whatever metrics. None with a reason where the judge gives none.

    Raises:
        JudgeError: as `judge`.
    """
    with _asking(spec, account) as (cache, scorer):
        found = scores_of(requests, identity(spec), cache, scorer)
    _stop_at_gaps(spec, [score.reason for score in found], "scores could not be had")
    return found


@contextmanager
def _asking(spec: LlmJudge, account: str) -> Iterator[tuple[Cache, Scorer]]:
    """All scores that were ever given, and who gives those that are missing."""
    with Cache(scores_file()) as cache:
        if isinstance(spec, LocalJudge):
            from emlib.judging import local  # loads torch, and the model if a score is missing

            yield cache, local.scorer(spec)
        else:
            from emlib.judging.api import ApiJudge
            from emlib.judging.batches import BatchJudge

            judge_of = BatchJudge if spec.batch else ApiJudge
            yield cache, judge_of(spec, Budget(cache, account, spec.max_usd))


def _stop_at_gaps(spec: LlmJudge, reasons: Sequence[str | None], what: str) -> None:
    """Refuse to go on without what a judge may still give another time, unless its profile says otherwise."""
    missing = [reason for reason in reasons if NOT_HAD in (reason or "")]
    if missing and isinstance(spec, OpenAIJudge) and spec.unanswered == "stop":
        raise JudgeError(f"{len(missing)} of {len(reasons)} {what}: {missing[0]}. All others are kept. Run again, and "
                         "only these are asked for; or set 'unanswered: unscored' for the judge, and they count as "
                         "unscored.")
