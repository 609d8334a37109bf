"""Our runs compared with the paper's numbers: the difference, its interval, and whether sampling explains it.

The paper prints no errors, so the interval is built as follows:

- General questions are the same on both sides, so only the answers were sampled again: Wilson's intervals on both
  sides. They are slightly too wide, because asking every question equally often can only lower the error.
- In-domain questions are 30 of 600, and we do not know which ones the paper sampled: our interval is clustered by
  question, and the paper's Wilson interval is widened by the factor by which clustering widens ours.
- Neither includes training seeds: both sides are single runs. A difference that sampling does not explain may come from
  the seed, the judge, a library or the data; conclude that it comes from the method only after excluding these.

One in twenty comparisons lies outside its interval by chance alone.
"""

from __future__ import annotations

import pandas as pd

from emlib.evaluation.statistics import Interval, difference_interval
from emlib.report.paper.paper_tables import Cell, label
from emlib.report.tables.result_tables import MEASURES

COLUMNS = ["model", "dataset", "method", "setting", "seed", "measure", "table", "ours", "paper", "difference", "low",
           "high", "sampling_explains"]
EXPLAINS = {True: "yes", False: "no", None: "not known"}


def beside_paper(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run of ours, measure, and table of the paper that contains the run.

    `ours` is `result_tables.numbers`, `paper` is `published.rates`. Runs match by data set, method, setting and the
    model's name without its owner. Runs that the paper does not have, and runs without verdicts, are left out.
    """
    rows = []
    for run in ours.to_dict("records"):
        same = paper[(paper["model"] == str(run["model"]).rpartition("/")[2]) & (paper["dataset"] == run["dataset"])
                     & (paper["method"] == run["method"])]
        swept = not pd.isna(run["setting"])
        same = same[same["setting"] == run["setting"]] if swept else same[same["setting"].isna()]
        for theirs in same.to_dict("records"):
            rows += [_row(run, theirs, measure) for measure in MEASURES if not pd.isna(run[measure])]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(run: dict, theirs: dict, measure: str) -> dict[str, object]:
    wilson = Interval(run[f"{measure}_wilson_low"], run[f"{measure}_wilson_high"])
    printed = Interval(theirs[f"{measure}_low"], theirs[f"{measure}_high"])
    if measure.startswith("general"):
        mine = wilson
    else:
        mine = Interval(run[f"{measure}_low"], run[f"{measure}_high"])
        printed = widened(printed, theirs[measure], max(1.0, (mine.high - mine.low) / (wilson.high - wilson.low)))
    interval = difference_interval(run[measure], mine, theirs[measure], printed)
    return {name: run[name] for name in COLUMNS[:5]} | {
        "measure": measure, "table": theirs["table"], "ours": run[measure], "paper": theirs[measure],
        "difference": run[measure] - theirs[measure], "low": interval.low, "high": interval.high,
        "sampling_explains": interval.low <= 0 <= interval.high}


def widened(interval: Interval, middle: float, factor: float) -> Interval:
    """Return the interval with both arms `factor` times as long."""
    return Interval(middle - factor * (middle - interval.low), middle + factor * (interval.high - middle))


def readable(compared: pd.DataFrame) -> pd.DataFrame:
    """Format `beside_paper` as a table of cells (`paper_tables.markdown`, `latex`); bold: not explained by sampling.

    It also takes the tables of `compare_tasks`, where an interval may be unknown.
    """
    return pd.DataFrame([{
        "Data set": Cell(row["dataset"]), "Method": Cell(label(row["method"], row["setting"])),
        "Seed": Cell(str(row["seed"])), "Measure": Cell(row["measure"].replace("_", " ").replace("in d", "in-d")),
        "Ours": Cell(f"{row['ours']:.2f}"), "Paper": Cell(f"{row['paper']:.2f}"), "Table": Cell(str(row["table"])),
        "Difference": _difference(row), "Sampling alone?": Cell(EXPLAINS[row["sampling_explains"]])}
        for row in compared.to_dict("records")])


def _difference(row: dict) -> Cell:
    text = f"{row['difference']:+.2f}"
    if row["sampling_explains"] is None:
        return Cell(text)
    return Cell(f"{text} [{row['low']:+.2f}, {row['high']:+.2f}]",
                frozenset() if row["sampling_explains"] else frozenset({"bold"}))
