"""One method trained under several seeds: its mean share, with an interval over seeds and questions.

Every seed answers the same questions, so the shares form a table, (seeds, questions), and both its rows and its columns
are draws from something larger. The pigeonhole bootstrap (Owen 2007, arXiv 0712.1111) draws rows and columns again,
each with replacement; its variance is right or somewhat too large. With one seed it is the bootstrap over questions of
`statistics.clustered`. Two or three seeds tell little about all seeds, and no bootstrap can mend that.
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
    """A mean share over seeds, in percent of what was asked."""

    percent: float
    interval: Interval
    seeds: int
    questions: int


def share_table(runs: Sequence[Sequence[Verdict]], kind: Kind) -> Shares:
    """The share of answers of `kind`, 0 to 1, (seeds, questions); a run of verdicts a seed.

    Unscored answers count as asked and not as of the kind, as in `rates`.

    Raises:
        DataError: there are no verdicts, or the runs were not asked the same questions equally often.
    """
    if not runs or not runs[0]:
        raise DataError("There are no verdicts to compare: expected one non-empty list of verdicts a seed.")
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
    """The mean share of `kind` over seeds and questions, and its interval; a run of verdicts a seed.

    Raises:
        DataError: as `share_table`.
    """
    table = share_table(runs, kind)
    interval = crossed_bootstrap(table, confidence, resamples)
    if interval is None:  # all cells agree, and there is nothing to draw from
        asked = sum(map(len, runs))
        interval = wilson(round(float(table.mean()) * asked), asked, confidence)
    return SeedMean(100 * float(table.mean()), interval, *table.shape)


def crossed_bootstrap(table: Shares, confidence: float, resamples: int) -> Interval | None:
    """The percentile interval of the mean of `table`, (seeds, questions), in percent; None where all cells agree.

    scipy's bootstrap draws along one axis only.
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
