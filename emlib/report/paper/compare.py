"""Our runs compared with the paper's numbers: the difference, its interval, and whether sampling explains it.

The paper prints no errors for single runs, so the interval of a difference is built as follows:

- General questions are the same on both sides, so only the answers were sampled again: Wilson's intervals on both
  sides. They are slightly too wide, because asking every question equally often can only lower the error.
- In-domain questions are 30 of 600, and we do not know which ones the paper sampled: our interval is clustered by
  question, and the paper's Wilson interval is widened by the factor by which clustering widens ours. So are those of
  single runs on benign tasks (Tables 3 and 4).
- With several seeds on both sides (Tables 5, 9 and 11) it is Welch's, over seeds, which covers the variation between
  training runs. It is unknown where one side's error is; then only the difference is given.

Without several seeds, training seeds are not included. A difference that sampling does not explain may come from the
seed, the judge, a library or the data; conclude that it comes from the method only after excluding these.

One in twenty comparisons lies outside its interval by chance alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from emlib.evaluation.statistics import Interval, OverSeeds, difference_interval, over_seeds, welch, wilson
from emlib.report.paper.paper_tables import GRPO_MEASURES, Cell, label
from emlib.report.tables.result_tables import MEASURES
from emlib.report.tables.rows import Row

COLUMNS = ["model", "dataset", "method", "setting", "seed", "measure", "table", "ours", "paper", "difference", "low",
           "high", "sampling_explains"]
EXPLAINS = {True: "yes", False: "no", None: "not known"}
# Answers behind a percentage of Tables 3 and 4: a tenth of 10,000 expressions and 200 questions, 10 times each (section
# 4.3). Every printed number is a whole count of these.
ASKED = {"opswap": 10_000, "foqa": 2_000}


def beside_paper(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run of ours, measure, and table of the paper that contains the run.

    `ours` is `result_tables.numbers`, `paper` is `published.rates`. Runs match by data set, method, setting and the
    model's name without its owner. Runs that the paper does not have, and runs without verdicts, are left out.
    """
    rows = []
    for run in ours.to_dict("records"):
        for theirs in _same(paper[paper["dataset"] == run["dataset"]], run["model"], run["method"], run["setting"]):
            rows += [_row(run, run[measure], theirs, measure, _of_shares(run, theirs, measure))
                     for measure in MEASURES if not pd.isna(run[measure])]
    return pd.DataFrame(rows, columns=COLUMNS)


def benign_beside_paper(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Compare `benign.numbers` with Tables 3, 4 and 11: one row per task, method and setting that both have."""
    rows = []
    for (model, task, tier, method, setting), runs in ours.groupby(["model", "task", "tier", "method", "setting"],
                                                                   dropna=False, sort=False):
        for theirs in _same(paper[paper["task"].eq(task) & _equal(paper["tier"], tier)], model, method, setting):
            interval = (_of_answers(runs, theirs) if theirs["n"] == 1
                        else _of_seeds(runs["exact_match"], theirs, "exact_match", "std"))
            name = str(task) if pd.isna(tier) else f"{task}-{tier}"
            rows.append(_mean_row(runs, name, theirs, "exact_match", interval))
    return pd.DataFrame(rows, columns=COLUMNS)


def grpo_beside_paper(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Compare `grpo.numbers` with Table 9: one row per condition and measure that both have."""
    rows = []
    for (model, method, setting), runs in ours.groupby(["model", "method", "setting"], dropna=False, sort=False):
        for theirs in _same(paper, model, method, setting):
            rows += [_mean_row(runs, "grpo", theirs, measure,
                               _of_seeds(runs[measure], theirs, measure, f"{measure}_std"))
                     for measure in GRPO_MEASURES
                     if not pd.isna(theirs[measure]) and not runs[measure].isna().all()]
    return pd.DataFrame(rows, columns=COLUMNS)


def _same(paper: pd.DataFrame, model: str, method: str, setting: float) -> list[dict[Any, Any]]:
    """Return the paper's rows of this model, method and setting."""
    return paper[(paper["model"] == str(model).rpartition("/")[2]) & (paper["method"] == method)
                 & _equal(paper["setting"], setting)].to_dict("records")


def _equal(column: pd.Series, value: Any) -> pd.Series:
    return column.isna() if pd.isna(value) else column.eq(value)


def _of_shares(run: Row, theirs: Row, measure: str) -> Interval:
    """Return the interval of a difference between shares of misaligned or incoherent answers."""
    independent = Interval(run[f"{measure}_wilson_low"], run[f"{measure}_wilson_high"])
    printed = Interval(theirs[f"{measure}_low"], theirs[f"{measure}_high"])
    if measure.startswith("general"):
        return difference_interval(run[measure], independent, theirs[measure], printed)
    return _clustered(run, theirs, measure, independent, printed)


def _of_answers(runs: pd.DataFrame, theirs: Row) -> Interval | None:
    """Return the interval of a difference between exact matches of single runs; None with several runs of ours."""
    if len(runs) > 1:
        return None
    run, asked = runs.iloc[0], ASKED[theirs["task"]]
    return _clustered(run, theirs, "exact_match", wilson(run["exact_match"] / 100 * run["asked"], run["asked"]),
                      wilson(theirs["exact_match"] / 100 * asked, asked))


def _clustered(run: Row, theirs: Row, measure: str, independent: Interval, printed: Interval) -> Interval:
    """Return the interval of a difference where clustering by question widens both sides by the same factor."""
    mine, share = Interval(run[f"{measure}_low"], run[f"{measure}_high"]), theirs[measure]
    factor = max(1.0, (mine.high - mine.low) / (independent.high - independent.low))
    widened = Interval(share - factor * (share - printed.low), share + factor * (printed.high - share))
    return difference_interval(run[measure], mine, share, widened)


def _of_seeds(values: pd.Series, theirs: Row, measure: str, deviation: str) -> Interval | None:
    printed = OverSeeds(theirs[measure], theirs[deviation], None, int(theirs["n"]))
    return welch(over_seeds(values.dropna().tolist()), printed)


def _mean_row(runs: pd.DataFrame, dataset: str, theirs: Row, measure: str, interval: Interval | None) -> dict[str, Any]:
    """Return the row of several seeds' mean: of those that have the measure."""
    runs = runs.dropna(subset=[measure])
    first = runs.iloc[0]
    seed = first["seed"] if len(runs) == 1 else f"mean of {len(runs)}"
    return _row(first.to_dict() | {"dataset": dataset, "seed": seed}, float(runs[measure].mean()), theirs, measure,
                interval)


def _row(run: Mapping[Any, Any], ours: float, theirs: Row, measure: str, interval: Interval | None) -> dict[str, Any]:
    low, high = (interval.low, interval.high) if interval else (float("nan"), float("nan"))
    return {name: run[name] for name in COLUMNS[:5]} | {
        "measure": measure, "table": theirs["table"], "ours": ours, "paper": theirs[measure],
        "difference": ours - theirs[measure], "low": low, "high": high,
        "sampling_explains": low <= 0 <= high if interval else None}


def readable(compared: pd.DataFrame) -> pd.DataFrame:
    """Format comparisons as a table of cells (`paper_tables.markdown`, `latex`); bold: not explained by sampling."""
    return pd.DataFrame([{
        "Data set": Cell(row["dataset"]), "Method": Cell(label(row["method"], row["setting"])),
        "Seed": Cell(str(row["seed"])), "Measure": Cell(row["measure"].replace("_", " ").replace("in d", "in-d")),
        "Ours": Cell(f"{row['ours']:.2f}"), "Paper": Cell(f"{row['paper']:.2f}"), "Table": Cell(str(row["table"])),
        "Difference": _difference(row), "Sampling alone?": Cell(EXPLAINS[row["sampling_explains"]])}
        for row in compared.to_dict("records")])


def _difference(row: Row) -> Cell:
    text = f"{row['difference']:+.2f}"
    if row["sampling_explains"] is None:
        return Cell(text)
    return Cell(f"{text} [{row['low']:+.2f}, {row['high']:+.2f}]",
                frozenset() if row["sampling_explains"] else frozenset({"bold"}))
