"""Benign tasks and reinforcement learning compared with Tables 3-5, 9 and 11, in the columns of `compare`.

The interval of a difference is:

- With several seeds on both sides: Welch's, over seeds. It covers the variation between training runs.
- With a single run on both sides (Tables 3 and 4): over test items and sampled answers. Our interval is clustered by
  question, and the paper's Wilson interval is widened by the factor by which clustering widens ours.
- Otherwise unknown, because one side's error is unknown; only the difference is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from emlib.evaluation.statistics import Interval, OverSeeds, difference_interval, over_seeds, welch, wilson
from emlib.report.paper.compare import COLUMNS, widened
from emlib.report.paper.paper_tables import GRPO_MEASURES

# Answers behind a percentage of Tables 3 and 4: a tenth of 10,000 expressions and 200 questions, 10 times each (section
# 4.3). Every printed number is a whole count of these.
ASKED = {"opswap": 10_000, "foqa": 2_000}
KEY = ["model", "method", "setting"]


def benign_beside_paper(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Compare `benign.numbers` with Tables 3, 4 and 11: one row per task, method and setting that both have."""
    rows = []
    for (model, task, tier, method, setting), runs in ours.groupby(["model", "task", "tier", "method", "setting"],
                                                                   dropna=False, sort=False):
        there = paper[paper["task"].eq(task) & _same(paper["tier"], tier)]
        for theirs in _of(there, model, method, setting):
            interval = (_of_answers(runs, theirs) if theirs["n"] == 1
                        else _over_seeds(runs["exact_match"], theirs, "exact_match", "std"))
            name = str(task) if pd.isna(tier) else f"{task}-{tier}"
            rows.append(_row(runs, theirs, "exact_match", name, interval))
    return pd.DataFrame(rows, columns=COLUMNS)


def grpo_beside_paper(ours: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Compare `grpo.numbers` with Table 9: one row per condition and measure that both have."""
    rows = []
    for (model, method, setting), runs in ours.groupby(KEY, dropna=False, sort=False):
        for theirs in _of(paper, model, method, setting):
            rows += [_row(runs, theirs, measure, "grpo",
                          _over_seeds(runs[measure], theirs, measure, f"{measure}_std"))
                     for measure in GRPO_MEASURES
                     if not pd.isna(theirs[measure]) and not runs[measure].isna().all()]
    return pd.DataFrame(rows, columns=COLUMNS)


def _of(paper: pd.DataFrame, model: str, method: str, setting: float) -> list[dict[Any, Any]]:
    return paper[(paper["model"] == model.rpartition("/")[2]) & (paper["method"] == method)
                 & _same(paper["setting"], setting)].to_dict("records")


def _same(column: pd.Series, value: Any) -> pd.Series:
    return column.isna() if pd.isna(value) else column.eq(value)


def _over_seeds(values: pd.Series, theirs: Mapping[Any, Any], measure: str, deviation: str) -> Interval | None:
    printed = OverSeeds(theirs[measure], theirs[deviation], None, int(theirs["n"]))
    return welch(over_seeds(values.dropna().tolist()), printed)


def _of_answers(runs: pd.DataFrame, theirs: Mapping[Any, Any]) -> Interval | None:
    """Return the interval of a difference between single runs; None with several runs of ours."""
    if len(runs) > 1:
        return None
    run, asked = runs.iloc[0], ASKED[theirs["task"]]
    mine = Interval(run["exact_match_low"], run["exact_match_high"])
    independent = wilson(run["exact_match"] / 100 * run["asked"], run["asked"])
    factor = max(1.0, (mine.high - mine.low) / (independent.high - independent.low))
    printed = widened(wilson(theirs["exact_match"] / 100 * asked, asked), theirs["exact_match"], factor)
    return difference_interval(run["exact_match"], mine, theirs["exact_match"], printed)


def _row(runs: pd.DataFrame, theirs: Mapping[Any, Any], measure: str, dataset: str,
         interval: Interval | None) -> dict[str, Any]:
    mean, first = float(runs[measure].mean()), runs.iloc[0]
    seed = first["seed"] if len(runs) == 1 else f"mean of {len(runs)}"
    low, high = (interval.low, interval.high) if interval else (float("nan"), float("nan"))
    return {"model": first["model"], "dataset": dataset, "method": first["method"], "setting": first["setting"],
            "seed": seed, "measure": measure, "table": theirs["table"], "ours": mean, "paper": theirs[measure],
            "difference": mean - theirs[measure], "low": low, "high": high,
            "sampling_explains": low <= 0 <= high if interval else None}
