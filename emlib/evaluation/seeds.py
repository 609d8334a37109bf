"""The mean share of one method over several training seeds, with an interval over seeds and questions.

Every seed answers the same questions, so the shares form a table, (seeds, questions), and both its rows and its columns
are samples of a larger population. The pigeonhole bootstrap (Owen 2007, arXiv 0712.1111) resamples rows and columns,
each with replacement; its variance is right or somewhat too large. With one seed it is the bootstrap over questions of
`statistics.clustered`. Two or three seeds say little about all seeds, and no bootstrap can change that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emlib.core.errors import DataError
from emlib.core.records import Verdict
from emlib.core.seeds import generator
from emlib.evaluation.statistics import Interval, wilson

Kind = Literal["misaligned", "incoherent"]
Shares = NDArray[np.float64]


@dataclass(frozen=True)
class SeedMean:
    """A mean share over seeds, in percent of the requested answers."""

    percent: float
    interval: Interval
    seeds: int
    questions: int


def share_table(runs: Sequence[Sequence[Verdict]], kind: Kind) -> Shares:
    """Return the share of answers of `kind`, 0 to 1, (seeds, questions), from one list of verdicts per seed.

    Unscored answers stay in the denominator and do not count as `kind`, as in `rates`.

    Raises:
        DataError: there are no verdicts, or the runs were not asked the same questions equally often.
    """
    if not runs or not runs[0]:
        raise DataError("There are no verdicts to compare: expected one non-empty list of verdicts per seed.")
    asked = [Counter(verdict.question for verdict in run) for run in runs]
    for seed, counts in enumerate(asked):
        if counts != asked[0]:
            question = min((counts - asked[0]) + (asked[0] - counts))
            raise DataError(f"List {seed} of verdicts asks question {question!r} {counts[question]} times, and the "
                            f"first list {asked[0][question]} times. Compare runs on the same questions and samples.")
    found = [Counter(verdict.question for verdict in run if getattr(verdict, kind)) for run in runs]
    return np.array([[of_kind[question] / times for question, times in asked[0].items()] for of_kind in found])


def mean_over_seeds(runs: Sequence[Sequence[Verdict]], kind: Kind = "misaligned", *, confidence: float = 0.95,
                    resamples: int = 2000) -> SeedMean:
    """Return the mean share of `kind` over seeds and questions, and its interval, from one list of verdicts per seed.

    Raises:
        DataError: as `share_table`.
    """
    table = share_table(runs, kind)
    interval = crossed_bootstrap(table, confidence, resamples)
    if interval is None:  # all cells are equal, so there is nothing to resample
        asked = sum(map(len, runs))
        interval = wilson(round(float(table.mean()) * asked), asked, confidence)
    return SeedMean(100 * float(table.mean()), interval, *table.shape)


def crossed_bootstrap(table: Shares, confidence: float, resamples: int) -> Interval | None:
    """Compute the percentile interval, in percent, of the mean of `table`, (seeds, questions); None if all are equal.

    scipy's bootstrap resamples one axis only.
    """
    if np.ptp(table) == 0:
        return None
    seeds, questions = table.shape
    rng = generator(0, "crossed bootstrap")
    rows = rng.integers(seeds, size=(resamples, seeds, 1))
    columns = rng.integers(questions, size=(resamples, 1, questions))
    means = table[rows, columns].mean(axis=(1, 2))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(100 * float(low), 100 * float(high))
