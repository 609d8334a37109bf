"""Averages of runs over data sets, like the points of Figure 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from emlib.evaluation.statistics import Interval, mean_interval
from emlib.report.tables.result_tables import MEASURES

CONDITION = ["method", "setting"]
OF_MODEL = ["model", *CONDITION]


def over_tasks(frame: pd.DataFrame, measures: Sequence[str], by: Sequence[str] = CONDITION,
               tasks: Sequence[str] = ("dataset",)) -> pd.DataFrame:
    """Average measures over seeds, and then over data sets (or other `tasks`), for each group in the columns `by`.

    A measure is NaN where a group lacks it on a data set on which another group has it, or for one of its seeds: its
    mean would not be comparable. `fewer_seeds` says which groups have fewer seeds.
    """
    cells = mean_of_all(frame.groupby([*by, *tasks], sort=False, dropna=False)[list(measures)]).reset_index()
    groups = cells.groupby(list(by), sort=False, dropna=False)[list(measures)]
    expected = pd.Series({name: len(cells.loc[cells[name].notna(), list(tasks)].drop_duplicates())
                          for name in measures})
    return groups.mean().where(groups.count().eq(expected, axis="columns"))


def mean_of_all(groups: Any) -> pd.DataFrame:
    """Average each measure of a group's rows; NaN where one row lacks it."""
    found: pd.DataFrame = groups.mean().where(groups.count().eq(groups.size(), axis="index"))
    return found


def fewer_seeds(frame: pd.DataFrame, by: Sequence[str] = CONDITION, tasks: Sequence[str] = ("dataset",)) -> list[str]:
    """Return " (1 of 3 seeds)" for each group of `over_tasks` with fewer runs on a data set than others; else ""."""
    found = fewest_seeds(frame, by, tasks)
    return marked_seeds(found["seeds"], found["most_seeds"])


def fewest_seeds(frame: pd.DataFrame, by: Sequence[str], tasks: Sequence[str]) -> pd.DataFrame:
    """Return each group's `seeds`, its runs on a task, and `most_seeds`, those of the group with most runs there.

    The task is the one on which the group has the smallest part of them. A row of `pairs.means` is as many runs as it
    is a mean of.
    """
    runs = _counted(frame).groupby([*by, *tasks], sort=False, dropna=False)["seeds"].sum().reset_index()
    runs["most_seeds"] = runs.groupby(list(tasks), dropna=False)["seeds"].transform("max")
    part = runs.assign(part=runs["seeds"] / runs["most_seeds"]).groupby(list(by), sort=False, dropna=False)["part"]
    return runs.loc[part.idxmin()].set_index(list(by))[["seeds", "most_seeds"]]


def _counted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with the number of runs that each row is of: 1, unless a column `seeds` says more."""
    return frame if "seeds" in frame else frame.assign(seeds=1)


def marked_seeds(seeds: pd.Series, most: pd.Series | None = None) -> list[str]:
    """Return " (1 of 3 seeds)" for each number of seeds below `most`, or below the largest one; else ""."""
    largest = [seeds.max()] * len(seeds) if most is None else most.tolist()
    return ["" if count == of else f" ({count} of {of} seeds)" for count, of in zip(seeds, largest, strict=True)]


def marks_of_means(means: pd.DataFrame) -> list[str]:
    """Return " (1 of 3 seeds)" for each row of `pairs.means` with fewer seeds than others of its data set; else ""."""
    seeds = _counted(means)["seeds"]
    return marked_seeds(seeds, seeds.groupby(means["dataset"]).transform("max"))


def over_datasets(frame: pd.DataFrame, *, same_questions: bool) -> pd.DataFrame:
    """Average each measure over data sets (and seeds), per model, method and setting, with 95% intervals.

    `frame` has the columns of `result_tables.numbers` or of `published.rates`; of a run with several rows the first
    counts. `datasets` is the number of data sets, `seeds` that of seeds on the data set with the fewest, and `fewer`
    says where others have more there (`fewer_seeds`). A measure is NaN where a method lacks it on a data set on which
    another method of its model has it, or for one of its seeds: its mean would not be comparable. So it is of a judge
    that does not have the measure.

    The intervals of several data sets are combined as independent, except with `same_questions`: every data set is
    asked the same general questions, so errors over questions may be correlated. Seeds always share their questions.
    In these cases the ends of the intervals are averaged, which covers the choice of questions, also where their errors
    go together. The variation between training seeds is not in it.
    """
    frame = _counted(frame.drop_duplicates([*OF_MODEL, "dataset", "seed"]))
    expected = {measure: frame.dropna(subset=[measure]).groupby("model")["dataset"].nunique() for measure in MEASURES}
    rows = []
    for identity, runs in frame.groupby(OF_MODEL, dropna=False, sort=False):
        on_dataset = runs.groupby("dataset", sort=False)
        cells = mean_of_all(on_dataset[[f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]])
        row: dict[str, object] = dict(zip(OF_MODEL, identity, strict=True)) | {
            "datasets": len(cells), "seeds": on_dataset["seeds"].sum().min()}
        for measure in MEASURES:
            known = cells.dropna(subset=[measure])
            if len(known) and len(known) == expected[measure].get(identity[0]):
                row |= _mean(measure, known, same_questions and measure.startswith("general"))
        rows.append(row)
    found = pd.DataFrame(rows, columns=[*OF_MODEL, "datasets", "seeds", *(
        f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high"))]).astype(
            {f"{measure}{end}": float for measure in MEASURES for end in ("", "_low", "_high")})
    return found.assign(fewer=fewer_seeds(frame, OF_MODEL))


def _mean(measure: str, cells: pd.DataFrame, shared: bool) -> dict[str, float]:
    values, lows, highs = (cells[f"{measure}{end}"].tolist() for end in ("", "_low", "_high"))
    interval = mean_interval(values, [Interval(*ends) for ends in zip(lows, highs, strict=True)])
    if shared:
        interval = Interval(sum(lows) / len(lows), sum(highs) / len(highs))
    return {measure: sum(values) / len(values), f"{measure}_low": interval.low, f"{measure}_high": interval.high}
