"""Emphasis in the paper's tables, computed by the rules of its captions (Tables 2, 7, 12-22).

- underline: general misalignment that is at least 90% below `misaligned`; in-domain misalignment of at least 90% of it.
- italic: more incoherent answers than `misaligned`.
- bold: the best defense for a measure on a data set, or all of equally good ones; baselines are excluded.
"""

from __future__ import annotations

import pandas as pd

from emlib.config import BASELINES
from emlib.report.tables.result_tables import MEASURES

ENOUGH = 0.9
BLOCK = ["model", "dataset", "seed"]
HIGHER_IS_BETTER = {"in_domain_misaligned"}


def marks(frame: pd.DataFrame, misaligned: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the set of marks (underline, italic, bold) for each row of `frame` and each measure of Table 2.

    `frame` has the columns of `result_tables.numbers`. The rows of method `misaligned` come from the argument
    `misaligned`, or from `frame`; without them nothing is underlined or italic.
    """
    source = frame if misaligned is None else misaligned
    baseline = source[source["method"] == "misaligned"].drop_duplicates(BLOCK)
    undefended = frame[BLOCK].merge(baseline, on=BLOCK, how="left").set_index(frame.index)
    columns: dict[str, list[set[str]]] = {measure: [set() for _ in range(len(frame))] for measure in MEASURES}
    for measure, cells in columns.items():
        for name, holds in {"underline": _enough(frame, undefended, measure),
                            "italic": _worse(frame, undefended, measure), "bold": _best(frame, measure)}.items():
            for cell, true in zip(cells, holds, strict=True):
                if true:
                    cell.add(name)
    return pd.DataFrame({measure: list(map(frozenset, cells)) for measure, cells in columns.items()}, index=frame.index)


def _enough(frame: pd.DataFrame, undefended: pd.DataFrame, measure: str) -> pd.Series:
    # if `misaligned` is zero there is nothing to prevent or to keep
    defended = ~frame["method"].isin(BASELINES) & (undefended[measure] > 0)
    # tolerance for rounding: 10% of 3.4 is 0.34000000000000003
    if measure == "general_misaligned":
        return defended & (frame[measure] <= (1 - ENOUGH) * undefended[measure] + 1e-9)
    if measure == "in_domain_misaligned":
        return defended & (frame[measure] >= ENOUGH * undefended[measure] - 1e-9)
    return pd.Series(False, index=frame.index)


def _worse(frame: pd.DataFrame, undefended: pd.DataFrame, measure: str) -> pd.Series:
    if not measure.endswith("incoherent"):
        return pd.Series(False, index=frame.index)
    return frame[measure] > undefended[measure]


def _best(frame: pd.DataFrame, measure: str) -> pd.Series:
    competing = frame[measure].where(~frame["method"].isin(BASELINES))
    best = competing.groupby([frame[name] for name in BLOCK]).transform(
        "max" if measure in HIGHER_IS_BETTER else "min")
    return competing.notna() & (competing == best)
