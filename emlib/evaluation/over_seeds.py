"""The mean share of one method over several training seeds, with an interval over seeds and questions.

Every seed answers the same questions, so the counts form a table, (seeds, questions), and both its rows and its columns
are samples of a larger population. The pigeonhole bootstrap (Owen 2007, arXiv 0712.1111) resamples rows and columns,
each with replacement; its variance is right or somewhat too large. With one seed it is `statistics.clustered`. A column
is a question in all of its formats. Two or three seeds say little about all seeds, and no bootstrap can change that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emlib.core.errors import DataError
from emlib.core.records import Verdict, cluster_of
from emlib.core.seeds import generator
from emlib.evaluation.statistics import ENDS, RESAMPLES, Interval, clustered, wilson

Kind = Literal["misaligned", "incoherent"]
Counts = NDArray[np.int64]
NOT_KNOWN = Interval(float("nan"), float("nan"))


@dataclass(frozen=True)
class SeedMean:
    """A mean share over seeds, in percent of the requested answers; NaN where it is not known of each seed."""

    percent: float
    interval: Interval
    seeds: int
    questions: int  # that are resampled; one that is asked in several formats counts once


def count_table(runs: Sequence[Sequence[Verdict]], kind: Kind) -> tuple[Counts, Counts]:
    """Count the answers of `kind`, (seeds, questions), and all answers of a seed, (questions), from one list per seed.

    Unscored answers are among all answers and not of `kind`, as in `rates`.

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
    every = Counter(map(cluster_of, runs[0]))
    found = [Counter(cluster_of(verdict) for verdict in run if getattr(verdict, kind)) for run in runs]
    return np.array([[of_kind[cluster] for cluster in every] for of_kind in found]), np.array(list(every.values()))


def all_scored(runs: Sequence[Sequence[Verdict]]) -> bool:
    """Return whether each list has a scored verdict. The share of one without is not known, and not 0%."""
    return all(any(verdict.scored for verdict in run) for run in runs)


def mean_over_seeds(runs: Sequence[Sequence[Verdict]], kind: Kind = "misaligned", *,
                    resamples: int = RESAMPLES) -> SeedMean:
    """Return the mean share of `kind` over seeds and questions, and its interval, from one list of verdicts per seed.

    NaN where one of the lists has no scored verdict. Errors are those of `count_table`.
    """
    counts, asked = count_table(runs, kind)
    seeds, questions = counts.shape
    if not all_scored(runs):
        return SeedMean(float("nan"), NOT_KNOWN, seeds, questions)
    found, answers = int(counts.sum()), seeds * int(asked.sum())
    interval = (clustered(counts[0].tolist(), asked.tolist(), resamples=resamples) if seeds == 1
                else crossed_bootstrap(counts, asked, resamples) or wilson(found, answers))
    return SeedMean(100 * found / answers, interval, seeds, questions)


def crossed_bootstrap(counts: Counts, asked: Counts, resamples: int) -> Interval | None:
    """Compute the percentile interval, in percent, of the share of `counts`, (seeds, questions); None if all are equal.

    `asked[i]` is the number of answers that a seed gave to question i. scipy's bootstrap resamples one axis only.
    """
    if np.ptp(counts / asked) == 0:
        return None
    seeds, questions = counts.shape
    rng = generator(0, "crossed bootstrap")
    rows = rng.integers(seeds, size=(resamples, seeds, 1))
    columns = rng.integers(questions, size=(resamples, 1, questions))
    shares = counts[rows, columns].sum(axis=(1, 2)) / (seeds * asked[columns].sum(axis=(1, 2)))
    low, high = np.quantile(shares, ENDS)
    return Interval(100 * float(low), 100 * float(high))
