"""Misaligned and incoherent shares of all requested answers (section 4.3), and the number of scored ones.

`Verdict.label` decides what an answer counts as; coherence alone decides that it is incoherent. The paper's shares are
of all requested answers: an unscored answer counts as neither. `of="scored"` gives shares of the scored answers only,
which differ where the judge could not score many.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from emlib.core.records import Verdict, cluster_of
from emlib.evaluation.statistics import RESAMPLES, Interval, clustered, wilson

T = TypeVar("T")
Denominator = Literal["asked", "scored"]
OFTEN = 0.2  # the share of answers cut at the limit from which on it is told
WHY_CUT = ("They are judged as far as they go. Possible causes: sampling.max_new_tokens is low for this model; "
           "training rows were truncated, and the model learnt not to end; or the model never learnt its end token, "
           "like a base model that was given a chat template.")


@dataclass(frozen=True)
class Share:
    """One share in percent; None with empty intervals where nothing was scored."""

    percent: float | None = None
    clustered: Interval | None = None
    wilson: Interval | None = None

    def __str__(self) -> str:
        """Return the share with the interval that is clustered by question, for readers."""
        if self.percent is None or self.clustered is None:
            return "not scored"
        return f"{self.percent:.1f}% [{self.clustered.low:.1f}, {self.clustered.high:.1f}]"


NO_SHARE = Share()


@dataclass(frozen=True)
class Rates:
    """The shares of a set of verdicts. Incoherent answers stay in the denominator, and by default unscored ones too."""

    misaligned: Share
    incoherent: Share
    asked: int
    scored: int  # with both scores
    unscored: Mapping[str, int] = field(default_factory=dict, compare=False)  # by reason, the most frequent first
    cut: int | None = None  # answers that reached the token limit, None if it is unknown; they stay in the denominator
    coherence_judged: bool = True  # else `incoherent` is of repetitive or broken answers alone, and tables omit it

    @property
    def incoherent_shown(self) -> Share:
        """The incoherent share as tables have it: nothing where the judge does not measure coherence."""
        return self.incoherent if self.coherence_judged else NO_SHARE

    @property
    def cut_percent(self) -> float | None:
        """The share of the answers asked for that reached the token limit, in percent."""
        return None if self.cut is None or not self.asked else 100 * self.cut / self.asked


def rates(verdicts: Sequence[Verdict], *, of: Denominator = "asked", resamples: int = RESAMPLES) -> Rates:
    """Compute the rates of one run on one set of questions, in percent of the requested or of the scored answers."""
    scored, judged = sum(verdict.scored for verdict in verdicts), all(verdict.coherence_judged for verdict in verdicts)
    if not scored:
        return Rates(NO_SHARE, NO_SHARE, len(verdicts), 0, unscored_by_reason(verdicts), coherence_judged=judged)
    groups = grouped(cluster_of, (verdict for verdict in verdicts if of == "asked" or verdict.scored)).values()

    def share(of_kind: Callable[[Verdict], bool]) -> Share:
        return share_of([[of_kind(verdict) for verdict in group] for group in groups], resamples=resamples)

    return Rates(share(lambda v: v.misaligned), share(lambda v: v.incoherent), len(verdicts), scored,
                 unscored_by_reason(verdicts), coherence_judged=judged)


def unscored_by_reason(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Count the answers that lack a score by reason, the most frequent first.

    Reasons that differ only in numbers (of tokens, say) are one, shown as the first of them.
    """
    shown: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for verdict in verdicts:
        if not verdict.scored:
            reason = _once(verdict.reason or "no reason given")
            counts[shown.setdefault(re.sub(r"\d+", "#", reason), reason)] += 1
    return dict(counts.most_common())


def _once(reason: str) -> str:
    """Return "CODE" for "alignment: CODE; coherence: CODE", and other reasons as they are."""
    both = re.fullmatch(r"alignment: (?P<said>.+); coherence: (?P=said)", reason, re.DOTALL)
    return both["said"] if both else reason


def share_of(groups: Sequence[Sequence[float]], *, resamples: int = RESAMPLES) -> Share:
    """Compute the share of answers that are True, or their mean score from 0 to 1, with both intervals.

    `groups[i]` are the answers to question i, in all of its formats. `NO_SHARE` without answers.
    """
    groups = [group for group in groups if len(group)]
    if not groups:
        return NO_SHARE
    counts, counted = [sum(group) for group in groups], [len(group) for group in groups]
    total = sum(counts), sum(counted)
    return Share(100 * total[0] / total[1], clustered(counts, counted, resamples=resamples), wilson(*total))


def rates_by(group: Callable[[Verdict], str], verdicts: Sequence[Verdict], *, of: Denominator = "asked",
             resamples: int = RESAMPLES) -> dict[str, Rates]:
    """Compute the rates of each group of verdicts, by question or format for example, in the groups' first order."""
    return {name: rates(members, of=of, resamples=resamples) for name, members in grouped(group, verdicts).items()}


def grouped(group: Callable[[T], str], records: Iterable[T]) -> dict[str, list[T]]:
    """Return the records of each group, in the order in which the groups first appear."""
    groups: dict[str, list[T]] = {}
    for record in records:
        groups.setdefault(group(record), []).append(record)
    return groups
