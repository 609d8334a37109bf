"""Misaligned and incoherent shares of all requested answers (section 4.3), and the number of scored ones.

`Verdict.label` decides what an answer counts as; coherence alone decides that it is incoherent. The paper's shares are
of all requested answers: an unscored answer counts as neither. `of="scored"` gives shares of the scored answers only,
which differ where the judge could not score many.
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
    """The shares of a set of verdicts. Incoherent answers stay in the denominator, and by default unscored ones too."""

    misaligned: Share
    incoherent: Share
    asked: int
    scored: int


def rates(verdicts: Sequence[Verdict], *, of: Denominator = "asked", confidence: float = 0.95,
          resamples: int = 2000) -> Rates:
    """Compute the rates of one run on one set of questions, in percent of the requested or of the scored answers."""
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
    """Compute the rates of each group of verdicts, by question or format for example, in the groups' first order."""
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[group(verdict)].append(verdict)
    return {name: rates(members, of=of, resamples=resamples) for name, members in groups.items()}


def by_question(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """Return the verdicts of each question, in the order in which questions first appear."""
    groups: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        groups[verdict.question].append(verdict)
    return dict(groups)
