"""Agreement of two judges on the same answers: of their labels (Cohen's kappa) and of their rankings (Spearman).

Kappa is the agreement beyond what two judges with these rates would reach by chance: 1 is full agreement, 0 is chance.
Its interval assumes independent answers; where few questions have many answers each, the true interval is wider. Only
answers that both judges scored are compared; `Agreement.compared` counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from emlib.core.errors import EmlibError
from emlib.core.records import Verdict, cluster_of
from emlib.evaluation.rates import NO_SHARE, Share, grouped, share_of

ROUNDING = 1e-12  # of a variance


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa with its 95% interval.

    All are None where both judges gave every answer the same single label (0 divided by 0). The interval is None where
    only one of them did, because kappa is then 0 for any labels of the other, and where the variance is 0, as at full
    agreement: its width would be 0 however few the answers.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Ranks:
    """Spearman's rank correlation of so many pairs of scores; None of fewer than two, or where one side is constant."""

    value: float | None
    pairs: int


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same answers."""

    asked: int
    compared: int  # how many of them both judges scored
    misaligned: Kappa  # of the two labels of section 4.3
    incoherent: Kappa
    alignment: Ranks  # of those with both scores
    coherence: Ranks
    same: Share = NO_SHARE  # of the compared answers, those with the same label


def agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> Agreement:
    """Compute the agreement of `first` and `second`; entry i of both is the same answer.

    Raises:
        EmlibError: the two lists are not about the same answers.
    """
    if [(v.question, v.sample) for v in first] != [(v.question, v.sample) for v in second]:
        raise EmlibError("the two lists of verdicts are not about the same answers in the same order. Compare verdicts "
                         "of two judges on one set of answers.")
    pairs = [(one, two) for one, two in zip(first, second, strict=True) if one.scored and two.scored]

    def ranks(score: Callable[[Verdict], float | None]) -> Ranks:
        both = [(score(one), score(two)) for one, two in pairs]
        return rank_correlation([(a, b) for a, b in both if a is not None and b is not None])

    groups = grouped(lambda pair: cluster_of(pair[0]), pairs).values()
    return Agreement(
        asked=len(first), compared=len(pairs),
        misaligned=kappa([(one.misaligned, two.misaligned) for one, two in pairs]),
        incoherent=kappa([(one.incoherent, two.incoherent) for one, two in pairs]),
        alignment=ranks(lambda v: v.alignment), coherence=ranks(lambda v: v.coherence),
        same=share_of([[one.label == two.label for one, two in group] for group in groups]) if pairs else NO_SHARE)


def kappa(labels: Sequence[tuple[bool, bool]]) -> Kappa:
    """Compute Cohen's kappa of two judges' yes/no labels."""
    from statsmodels.stats.inter_rater import cohens_kappa  # its import takes a second, and few notebooks need it

    table = np.zeros((2, 2))
    for one, two in labels:
        table[int(one), int(two)] += 1
    margins = np.array([table.sum(0), table.sum(1)])
    if (margins[0] * margins[1]).sum() == table.sum() ** 2:
        return Kappa(None, None, None)
    if not margins.all():
        return Kappa(0.0, None, None)
    with np.errstate(invalid="ignore"):  # rounding may put a variance of 0 below
        found = cohens_kappa(table)
    value = float(found.kappa)
    if found.var_kappa <= ROUNDING:
        return Kappa(value, None, None)
    return Kappa(value, max(-1.0, float(found.kappa_low)), min(1.0, float(found.kappa_upp)))


def rank_correlation(scores: Sequence[tuple[float, float]]) -> Ranks:
    """Compute Spearman's correlation of pairs of scores, ties at their mean rank."""
    pairs = np.array(scores, dtype=float)
    if len(pairs) < 2 or (np.ptp(pairs, axis=0) == 0).any():
        return Ranks(None, len(pairs))
    return Ranks(float(pd.DataFrame(pairs).corr(method="spearman").iloc[0, 1]), len(pairs))
