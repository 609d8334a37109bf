"""A paired comparison of two methods on the same questions: their difference, its interval and its p value.

Some questions get misaligned answers from every model. The difference per question removes this shared variation, so
that fewer answers suffice to show an effect. The bootstrap resamples whole questions (and seeds, where there are
several), because answers to one question are not independent. A question in several formats is one question. The sign
test knows 2^n patterns of n questions: with the eight general questions p is at least 2/256, so that Holm's adjustment
leaves nothing below 5% among seven comparisons or more (`smallest_p`). How large a difference must be to be found, and
how many questions a smaller one takes, is estimated before anything is asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from emlib.core.errors import DataError
from emlib.core.records import Verdict, cluster_of
from emlib.core.seeds import generator
from emlib.evaluation.over_seeds import NOT_KNOWN, Counts, Kind, all_scored, count_table, crossed_bootstrap
from emlib.evaluation.rates import grouped
from emlib.evaluation.statistics import RESAMPLES, Interval, difference_interval, of_mean, wilson

PART = 1000  # of the random patterns, which are tried together
CORRELATION = 0.1  # r in `smallest_difference`: assumed, not measured
SHARE = 0.5  # p there: needs the most answers
POWER, LEVEL = 0.8, 0.05
EXACT, FLIPS = 13, 100_000  # with more questions than 13 a paired test tries so many random patterns of signs, not all


@dataclass(frozen=True)
class Difference:
    """By how many percentage points a method's share exceeds the reference's; NaN where one of them is not known."""

    points: float
    interval: Interval
    p: float
    seeds: int
    questions: int  # whose signs are flipped; one that is asked in several formats counts once


def difference(method: Sequence[Sequence[Verdict]], reference: Sequence[Sequence[Verdict]], kind: Kind = "misaligned",
               *, resamples: int = RESAMPLES) -> Difference:
    """Compute `method` minus `reference` on the same questions; one list of verdicts per seed, the same seeds in both.

    The interval is `crossed_bootstrap`'s on the differences. Where these are all equal it is Newcombe's for two
    independent shares. p is two-sided, from a sign-flip permutation test on the questions' differences: if the answers
    of both came from one model, their labels are exchangeable on every question. All are NaN where one of the lists has
    no scored verdict.

    Raises:
        DataError: the two were not asked the same questions equally often, or have different numbers of seeds.
    """
    if len(method) != len(reference):
        raise DataError(f"{len(method)} runs of a method cannot be paired with {len(reference)} of the reference. "
                        "Compare the same seeds of both.")
    both, asked = count_table([*method, *reference], kind)
    ours, theirs = both[:len(method)], both[len(method):]
    gaps, answers = ours - theirs, len(method) * int(asked.sum())
    if not all_scored([*method, *reference]):
        return Difference(float("nan"), NOT_KNOWN, float("nan"), *gaps.shape)
    interval = crossed_bootstrap(gaps, asked, resamples) or _newcombe(int(ours.sum()), int(theirs.sum()), answers)
    return Difference(100 * int(gaps.sum()) / answers, interval, _sign_flip_p(gaps.sum(axis=0)), *gaps.shape)


def change_of_judge(first: Sequence[Verdict], second: Sequence[Verdict], kind: Kind) -> Interval:
    """Compute the interval of `second` minus `first`, in percentage points: two judges on the same answers.

    Both lists are in one order. It resamples whole questions. Where there is one question, or the change is equal in
    all, it is Newcombe's for two independent shares, which is wider.
    """
    pairs = grouped(lambda pair: cluster_of(pair[0]), zip(first, second, strict=True)).values()
    groups = [[100.0 * (getattr(two, kind) - getattr(one, kind)) for one, two in pair] for pair in pairs]
    ours, theirs = (sum(getattr(verdict, kind) for verdict in verdicts) for verdicts in (second, first))
    return of_mean(groups) or _newcombe(ours, theirs, len(first))


def adjusted(differences: Sequence[Difference]) -> list[float]:
    """Return the p values of one family of comparisons, adjusted for their number by Holm's method.

    It controls the family-wise error rate under any dependence. A p that is not known (NaN) is of no comparison.
    """
    from statsmodels.stats.multitest import multipletests  # its import takes a second, and few notebooks need it

    found = np.array([each.p for each in differences], dtype=float)
    known = ~np.isnan(found)
    if known.any():
        found[known] = multipletests(found[known], method="holm")[1]
    return [float(p) for p in found]


def _sign_flip_p(gaps: Counts) -> float:
    """Test whether the questions' differences in counts, of which the mean difference is the sum, have random signs.

    p is the share of the patterns of signs under which the sum is at least as far from 0: of all patterns, or of so
    many random ones and the one that was observed.
    """
    far, questions = abs(gaps.sum()), len(gaps)
    if questions <= EXACT:
        signs = 1 - 2 * (np.arange(2**questions)[:, None] >> np.arange(questions) & 1)
        return float(np.mean(np.abs(signs @ gaps) >= far))
    draw = generator(0, "sign flips")
    parts = (1 - 2 * draw.integers(0, 2, (PART, questions)) for _ in range(FLIPS // PART))
    return float(1 + sum((np.abs(signs @ gaps) >= far).sum() for signs in parts)) / (1 + FLIPS)


def _newcombe(ours: int, theirs: int, asked: int) -> Interval:
    """Return Newcombe's interval; NaN without answers."""
    if not asked:
        return NOT_KNOWN
    return difference_interval(100 * ours / asked, wilson(ours, asked), 100 * theirs / asked, wilson(theirs, asked))


def smallest_p(questions: int) -> float:
    """Return the smallest p value that the paired test (`paired.difference`) can have with so many questions."""
    return 2.0 ** (1 - questions) if questions <= EXACT else 1 / (1 + FLIPS)


def smallest_difference(questions: int, samples: float, *, comparisons: int = 1) -> float:
    """Return the difference in percentage points that two runs must have to be found four times in five.

        d = (z_(1 - level/2) + z_power) sqrt(2 p (1 - p) (1 + (n - 1) r) / (Q n))

    Q questions with n answers each are asked of both runs; p is the share of misaligned answers; r is the correlation
    of answers to one question that pairing by question does not cancel. It is the normal approximation of a two-sided
    test; with few questions d is larger. More answers to the same questions help only down to d at n = infinity; more
    questions help.

    A question in several formats counts once, with the samples of all of them. Each of the `comparisons` of a table is
    tested at `LEVEL` divided by their number, Holm's first step.
    """
    variance = 2 * SHARE * (1 - SHARE) * (1 + (samples - 1) * CORRELATION) / (questions * samples)
    normal = NormalDist()
    distance = normal.inv_cdf(1 - LEVEL / comparisons / 2) + normal.inv_cdf(POWER)
    return 100 * distance * math.sqrt(variance)


def questions_needed(points: float, samples: float) -> int:
    """Return how many questions, with so many answers each, a difference of `points` percentage points takes."""
    return math.ceil((smallest_difference(1, samples) / points) ** 2 - 1e-9)
