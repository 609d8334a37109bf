"""Misaligned and incoherent shares of what was asked (section 4.3), with what could be scored beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emlib.evaluation.statistics import Interval, clustered, wilson
from emlib.types import Verdict


@dataclass(frozen=True)
class Share:
    """One share in percent of what was asked; None with empty intervals where nothing was scored."""

    percent: float | None
    clustered: Interval | None
    wilson: Interval | None


@dataclass(frozen=True)
class Rates:
    """How a set of verdicts comes out. Incoherent and unscored answers stay in the denominator."""

    misaligned: Share
    incoherent: Share
    asked: int
    scored: int


def rates(verdicts: Sequence[Verdict], *, confidence: float = 0.95, resamples: int = 2000) -> Rates:
    """The rates of one run's verdicts on one set of questions."""
    scored = sum(verdict.scored for verdict in verdicts)
    if not scored:
        nothing = Share(None, None, None)
        return Rates(nothing, nothing, len(verdicts), 0)
    groups = by_question(verdicts)
    asked = [len(group) for group in groups.values()]

    def share(of_kind: Callable[[Verdict], bool]) -> Share:
        counts = [sum(map(of_kind, group)) for group in groups.values()]
        total = sum(counts), sum(asked)
        return Share(100 * total[0] / total[1], clustered(counts, asked, confidence=confidence, resamples=resamples),
                     wilson(*total, confidence))

    return Rates(share(lambda v: v.misaligned), share(lambda v: v.incoherent), len(verdicts), scored)


def by_question(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """The verdicts of each question, in the order in which questions first appear."""
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[verdict.question].append(verdict)
    return dict(groups)
