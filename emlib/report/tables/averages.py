"""Runs averaged over data sets, as the points of Figure 1 are."""

from __future__ import annotations

import pandas as pd

from emlib.evaluation.mover import mean_interval
from emlib.evaluation.statistics import Interval
from emlib.report.tables.result_tables import MEASURES

IDENTITY = ["model", "method", "setting"]


def over_datasets(frame: pd.DataFrame, *, same_questions: bool) -> pd.DataFrame:
    """The mean of each measure over data sets (and seeds), a row a model, method and setting, with 95% intervals.

    `frame` has the columns of `tables.numbers` or of `published.rates`; a run that stands there twice counts once, its
    first row. `datasets` says how many there are. Methods that lack one that others have, or its verdicts, are left
    out, for their mean would be of something else.

    The intervals of several data sets are combined as independent ones, but with `same_questions`: intervals over
    questions, where every data set is asked the same general ones, so that their errors may all go one way. Seeds
    always share their questions. Then the mean of the ends is taken, which is never too narrow.
    """
    frame = frame.drop_duplicates([*IDENTITY, "dataset", "seed"]).dropna(subset=list(MEASURES))
    expected = frame.groupby("model")["dataset"].nunique()
    rows = []
    for identity, runs in frame.groupby(IDENTITY, dropna=False, sort=False):
        cells = runs.groupby("dataset", sort=False)[
            [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]].mean()
        if len(cells) < expected[identity[0]]:
            continue
        row: dict[str, object] = dict(zip(IDENTITY, identity, strict=True)) | {"datasets": len(cells)}
        for measure in MEASURES:
            shared = same_questions and measure.startswith("general")
            row |= _mean(measure, cells, shared)
        rows.append(row)
    return pd.DataFrame(rows, columns=[*IDENTITY, "datasets", *(
        f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high"))])


def _mean(measure: str, cells: pd.DataFrame, shared: bool) -> dict[str, float]:
    values, lows, highs = (cells[f"{measure}{end}"].tolist() for end in ("", "_low", "_high"))
    interval = mean_interval(values, [Interval(*ends) for ends in zip(lows, highs, strict=True)])
    if shared:
        interval = Interval(sum(lows) / len(lows), sum(highs) / len(highs))
    return {measure: sum(values) / len(values), f"{measure}_low": interval.low, f"{measure}_high": interval.high}
