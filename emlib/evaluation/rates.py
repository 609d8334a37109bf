"""Misaligned and incoherent shares of what was asked (section 4.3), with what could be scored beside them.

The paper's shares are of all answers asked for. Shares of the scored ones alone can be had too (`of="scored"`): they
say what a judge found among the answers that it could judge, and differ where it could not judge many.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from emlib.core.records import Verdict
from emlib.evaluation.statistics import Interval, clustered, wilson

Denominator = Literal["asked", "scored"]


@dataclass(frozen=True)
class Share:
    """One share in percent; None with empty intervals where nothing was scored."""

    percent: float | None
    clustered: Interval | None
    wilson: Interval | None


@dataclass(frozen=True)
class Rates:
    """How a set of verdicts comes out. Incoherent answers stay in the denominator, and unscored ones by default."""

    misaligned: Share
    incoherent: Share
    asked: int
    scored: int


def rates(verdicts: Sequence[Verdict], *, of: Denominator = "asked", confidence: float = 0.95,
          resamples: int = 2000) -> Rates:
    """The rates of one run's verdicts on one set of questions, in percent of what was asked, or scored."""
    scored = sum(verdict.scored for verdict in verdicts)
    if not scored:
        nothing = Share(None, None, None)
        return Rates(nothing, nothing, len(verdicts), 0)
    groups = by_question([verdict for verdict in verdicts if of == "asked" or verdict.scored])
    counted = [len(group) for group in groups.values()]

    def share(of_kind: Callable[[Verdict], bool]) -> Share:
        counts = [sum(map(of_kind, group)) for group in groups.values()]
        total = sum(counts), sum(counted)
        return Share(100 * total[0] / total[1], clustered(counts, counted, confidence=confidence, resamples=resamples),
                     wilson(*total, confidence))

    return Rates(share(lambda v: v.misaligned), share(lambda v: v.incoherent), len(verdicts), scored)


def rates_by(group: Callable[[Verdict], str], verdicts: Sequence[Verdict], *, of: Denominator = "asked",
             resamples: int = 2000) -> dict[str, Rates]:
    """The rates of each group of verdicts, in the order in which groups first come up: by question, say, or format."""
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[group(verdict)].append(verdict)
    return {name: rates(members, of=of, resamples=resamples) for name, members in groups.items()}


def by_question(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """The verdicts of each question, in the order in which questions first appear."""
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[verdict.question].append(verdict)
    return dict(groups)
