"""What the rows of all tables share: the run that a row is of, and values with their intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from emlib.core.records import BOUNDS
from emlib.evaluation.rates import Share
from emlib.evaluation.statistics import Interval
from emlib.study.runs import Run

IDENTITY = ["dataset", "method", "setting", "seed"]  # the columns that identify a run of a study
Row = Mapping[Hashable, Any]  # or a row of a data frame
DASH = "–"
SHOWN_ABOVE = 100 - BOUNDS[0]  # the trait's score: section 4.3 has the bound of alignment, 100 minus that
TRAIT = f"trait (above {SHOWN_ABOVE:g}) %"
# Methods whose setting is the share of the fine-tuning rows that they add or leave out.
FRACTIONS = frozenset({"interleaving", "interleaving+", "interleaving++", "on_policy", "interleaving_online",
                       "interleaving_virtuous", "filtered", "random_filtered"})


def identity_of(run: Run) -> dict[str, Any]:
    """Return the columns that identify a run."""
    return {"dataset": run.task, "method": run.method, "setting": run.setting, "seed": run.seed}


def runs_of(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of each run, in the order of the runs' first rows."""
    return [rows for _, rows in frame.groupby(IDENTITY, dropna=False, sort=False)]


def misaligned_of(frame: pd.DataFrame) -> list[str]:
    """Return the columns with the misaligned share of a question set, in their order."""
    return [str(name) for name in frame.columns if str(name).endswith("_misaligned")]


def readable_identity(row: Row) -> dict[str, Any]:
    """Return the columns that identify a run, for readers."""
    return {"Data set": row["dataset"], "Method": row["method"], "Setting": shown(row["setting"]), "Seed": row["seed"]}


def shown(setting: Any) -> str:
    """Format the value of a swept hyperparameter; empty for a method that sweeps none."""
    return "" if pd.isna(setting) else f"{setting:g}"


def condition(row: Row) -> str:
    """Return a row's method and setting: "kl 0.1"."""
    return f"{row['method']} {shown(row['setting'])}".rstrip()


def named(row: Row) -> str:
    """Return a row's method and setting as figures name them: "kl 0.1", "interleaving 100%", "no defense"."""
    number = row["setting"]
    setting = f"{100 * number:g}%" if row["method"] in FRACTIONS and not pd.isna(number) else shown(number)
    return f"{method_named(row['method'])} {setting}".rstrip()


def method_named(method: str) -> str:
    """Return a method's name in figures: the model without a defense is not the only misaligned one."""
    return "no defense" if method == "misaligned" else method


def share_columns(name: str, share: Share | None) -> dict[str, float]:
    """Return a share and its clustered interval as the columns `<name>`, `<name>_low` and `_high`; NaN without one."""
    nothing = float("nan")
    interval = (share and share.clustered) or Interval(nothing, nothing)
    percent = nothing if share is None or share.percent is None else share.percent
    return {name: percent, f"{name}_low": interval.low, f"{name}_high": interval.high}


def cell(value: float | None, low: float | None = None, high: float | None = None, digits: int = 1) -> str:
    """Format a value with its interval, if it has one: "88.5 [82.3, 93.8]"; a dash for a missing value."""
    if value is None or pd.isna(value):
        return DASH
    if low is None or high is None or pd.isna(low):
        return f"{value:.{digits}f}" if digits else whole(value)
    return f"{value:.{digits}f} [{round(low, digits) + 0.0:.{digits}f}, {high:.{digits}f}]"  # + 0.0: -0.0 is 0.0


def whole(percent: float) -> str:
    """Round a share in percent, half of one up (Python's own rounding takes 52.5 to 52); a dash if it is missing."""
    return DASH if pd.isna(percent) else f"{math.floor(percent + 0.5)}"


def with_error(value: float | None, error: float | None, digits: int) -> str:
    """Format a value with its standard deviation or error, if it has one: "90.7 ± 0.8"."""
    return cell(value, digits=digits) + ("" if error is None or pd.isna(error) else f" ± {error:.{digits}f}")


def cell_of(row: Row, measure: str, digits: int = 1) -> str:
    """Format a row's measure with its interval."""
    return cell(row[measure], row[f"{measure}_low"], row[f"{measure}_high"], digits)


def cells(frame: pd.DataFrame, measure: str) -> list[str]:
    """Format a measure of each row with its interval."""
    return [cell_of(row, measure) for row in frame.to_dict("records")]


def without_dashes(people: pd.DataFrame) -> pd.DataFrame:
    """Return a table for readers without the columns in which every cell is a dash."""
    return people.loc[:, [not len(people) or not people[name].eq(DASH).all() for name in people]]


def p_value(value: float) -> str:
    """Format a p value: "0.016", "<0.001", or a dash where there was no test."""
    return DASH if pd.isna(value) else "<0.001" if value < 0.001 else f"{value:.3f}"
