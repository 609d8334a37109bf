"""Intervals for shares and means: Wilson's for independent answers, else a bootstrap over questions.

Answers to one question are correlated, so 100 answers to each of 24 questions say less than 2,400 independent ones, and
the 24 general questions are 8 questions in three formats (`Question.cluster`). The clustered interval resamples whole
questions, each with all of its formats, and is the one to quote; Wilson's is given for comparison.

With eight clusters a percentile bootstrap is itself somewhat too narrow (Cameron, Gelbach and Miller 2008): it behaves
like a normal interval with the variance divided by n and not n - 1. In a simulation (eight questions, 300 answers each,
correlation 0.1 within a question, 4,000 draws) its 95% intervals hold a true share of 50, 25 and 10% in 90, 88 and 85
of 100 cases. Student's interval of the eight shares does in 95, 93 and 91; it is a third wider, and may reach beyond 0
and 100%. The bootstrap is kept: it stays between these, and needs no equal numbers of answers.

scipy is imported where it is used: its import takes a second, every notebook and plan imports this module, and few need
its tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

from emlib.core.seeds import generator

CONFIDENCE = 0.95  # of every interval
ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)  # its quantiles
NORMAL = 1.96  # standard errors on either side of a mean that make such an interval
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A lower and an upper end, in the unit of the estimate: percent for shares."""

    low: float
    high: float


def wilson(count: float, asked: int) -> Interval:
    """Compute Wilson's score interval of count/asked, in percent."""
    share, z = count / asked, NormalDist().inv_cdf(ENDS[1])
    scale = 100 / (1 + z**2 / asked)
    middle, half = share + z**2 / (2 * asked), z * sqrt(share * (1 - share) / asked + z**2 / (4 * asked**2))
    low, high = scale * (middle - half), scale * (middle + half)
    return Interval(low if count else 0.0, high if count < asked else 100.0)  # without their rounding


def clustered(counts: Sequence[float], asked: Sequence[int], *, resamples: int = RESAMPLES) -> Interval:
    """Compute the percentile bootstrap interval of sum(counts)/sum(asked) over questions, in percent.

    `counts[i]` of `asked[i]` answers to question i, in all of its formats, are of the kind, or `counts[i]` is the sum
    of their scores from 0 to 1. With a single question, or equal shares in all questions, resampling changes nothing:
    the interval is Wilson's.
    """
    shares = np.asarray(counts) / np.asarray(asked)
    if len(shares) < 2 or np.ptp(shares) == 0:
        return wilson(sum(counts), sum(asked))
    return _bootstrap(counts, asked, resamples, scale=100)


def of_mean(groups: Sequence[Sequence[float]]) -> Interval | None:
    """Compute the percentile bootstrap interval over questions of the mean of all values; `groups[i]` is question i.

    Return None for a single question, which says nothing about others, or equal means in all questions, of which
    resampling makes an interval of width 0.
    """
    sums, counts = [sum(group) for group in groups], [len(group) for group in groups]
    if len(groups) < 2 or np.ptp(np.asarray(sums) / counts) == 0:
        return None
    return _bootstrap(sums, counts, RESAMPLES)


def _bootstrap(sums: Sequence[float], counts: Sequence[int], resamples: int, *, scale: int = 1) -> Interval:
    """Compute the percentile interval of `scale` times sum(sums)/sum(counts); entry i of both is of question i."""
    drawn = generator(0, "bootstrap").integers(len(sums), size=(resamples, len(sums)))
    ratios = scale * np.asarray(sums)[drawn].sum(axis=-1) / np.asarray(counts)[drawn].sum(axis=-1)
    low, high = np.quantile(ratios, ENDS)
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class OverSeeds:
    """Several seeds of one run: mean, sample standard deviation, and Student's interval of the mean.

    With one seed, deviation and interval are None. Equal seeds have no interval: it would be of width 0.
    """

    mean: float
    deviation: float | None
    interval: Interval | None
    seeds: int


def over_seeds(percents: Sequence[float]) -> OverSeeds:
    """Summarise one percentage per seed (Table 11); the interval is clipped to 0 and 100."""
    values = np.asarray(percents, dtype=float)
    mean = float(values.mean())
    if len(values) == 1:
        return OverSeeds(mean, None, None, 1)
    if np.ptp(values) == 0:
        return OverSeeds(mean, 0.0, None, len(values))
    deviation = float(values.std(ddof=1))
    half = _student(len(values) - 1) * deviation / len(values) ** 0.5
    return OverSeeds(mean, deviation, Interval(max(0.0, mean - half), min(100.0, mean + half)), len(values))


def welch(ours: OverSeeds, theirs: OverSeeds) -> Interval | None:
    """Compute Welch's interval of `ours.mean - theirs.mean`, two means over seeds; None where either has one seed.

    It is None as well where neither varies between its seeds.
    """
    if ours.deviation is None or theirs.deviation is None:
        return None
    parts = [each.deviation ** 2 / each.seeds for each in (ours, theirs) if each.deviation is not None]
    gap, whole = ours.mean - theirs.mean, sum(parts)
    if whole == 0:
        return None
    degrees = whole ** 2 / sum(part ** 2 / (each.seeds - 1) for part, each in zip(parts, (ours, theirs), strict=True))
    half = _student(degrees) * whole ** 0.5
    return Interval(gap - half, gap + half)


def _student(degrees: float) -> float:
    """Return how many standard errors Student's interval reaches to either side, for these degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, ENDS[1]))


def difference_interval(left: float, of_left: Interval, right: float, of_right: Interval) -> Interval:
    """Return the interval of `left - right`, two independent percentages, from the interval of each.

    MOVER, the method of variance estimates recovery (Zou and Donner 2008): an estimate's distance to each end of its
    interval stands for its error on that side. With Wilson's intervals it is Newcombe's (1998) method 10. It stays
    valid near 0 and 100%, where a standard error would be 0.
    """
    gap = left - right
    return Interval(gap - sqrt((left - of_left.low) ** 2 + (of_right.high - right) ** 2),
                    gap + sqrt((of_left.high - left) ** 2 + (right - of_right.low) ** 2))


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Return the interval of the mean of independent estimates from the interval of each, by MOVER too."""
    middle = sum(values) / len(values)
    below = sqrt(sum((value - each.low) ** 2 for value, each in zip(values, intervals, strict=True)))
    above = sqrt(sum((each.high - value) ** 2 for value, each in zip(values, intervals, strict=True)))
    return Interval(middle - below / len(values), middle + above / len(values))


def auroc(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the share of pairs in which the value of `one` is the larger, ties counting half, and its p value.

    p is of Mann and Whitney's test, which takes all values as independent.
    """
    from scipy.stats import mannwhitneyu

    test = mannwhitneyu(one, other)
    return float(test.statistic) / (len(one) * len(other)), float(test.pvalue)
