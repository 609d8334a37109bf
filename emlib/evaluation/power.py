"""How large a difference between two runs, or between two methods, must be to be found, and what a smaller one takes.

    d = (z_(1 - level/2) + z_power) sqrt(2 p (1 - p) (1 + (n - 1) r) / (Q n))

Q questions with n answers each, in all of a question's formats together, asked of both runs; p the share of misaligned
answers; r the correlation of answers to one question that pairing by question does not cancel. The normal approximation
of a two-sided test, with p = 1/2; with few questions d is larger. More answers to the
same questions help only down to d at n = infinity; more questions help.
"""

from __future__ import annotations

import math
from statistics import NormalDist

CORRELATION = 0.1  # assumed, not measured
SHARE = 0.5  # needs the most answers
POWER, LEVEL = 0.8, 0.05
EXACT, FLIPS = 13, 100_000  # with more questions than 13 a paired test tries so many random patterns of signs, not all


def smallest_p(questions: int) -> float:
    """Return the smallest p value that the paired test (`paired.difference`) can have with so many questions."""
    return 2.0 ** (1 - questions) if questions <= EXACT else 1 / (1 + FLIPS)


def smallest_difference(questions: int, samples: float, *, comparisons: int = 1) -> float:
    """Return the difference in percentage points that two runs must have to be found four times in five.

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
