"""Newer defenses against the paper's, on the trade-off of general against in-domain misalignment.

A run of a newer method is compared with the best run of the paper's methods that may keep as much of the narrow task:
of those whose in-domain interval reaches the run's share, the one with the fewest misaligned general answers. The run
is better if it has fewer, and clearly so if the two 95% intervals are disjoint. Plain fine-tuning is among the paper's
methods, so that there nearly always is one.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from emlib.config import BASELINES
from emlib.report.paper import published
from emlib.report.paper.paper_tables import label
from emlib.report.tables.result_tables import cell

GENERAL, IN_DOMAIN = "general_misaligned", "in_domain_misaligned"
YES, OVERLAP, NO = "yes", "yes, but the intervals overlap", "no"
HEADINGS = {"run": "Newer defense", "general": "General misaligned %", "in-domain": "In-domain misaligned %",
            "rival": "Best of the paper that may keep as much", "rival's": "Its general misaligned %",
            "better": "Better"}


def against_paper(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare each run of a method that is not in Table 2; `frame` is `result_tables.numbers`.

    Runs are compared within a data set and a seed. A run without verdicts, or without a rival, is left out.
    """
    rows = [row for _, runs in frame.dropna(subset=[GENERAL, IN_DOMAIN]).groupby(["dataset", "seed"], sort=False)
            for row in _compared(runs)]
    return pd.DataFrame(rows, columns=["dataset", "seed", *HEADINGS])


def _compared(runs: pd.DataFrame) -> list[dict[Any, Any]]:
    of_paper = runs["method"].isin(set(published.table(2)["method"]) - {"untrained", "aligned"})
    found = []
    for run in runs[~of_paper & ~runs["method"].isin(BASELINES)].to_dict("records"):
        rivals = runs[of_paper & (runs[f"{IN_DOMAIN}_high"] >= run[IN_DOMAIN])]
        if not rivals.empty:
            rival = rivals.loc[rivals[GENERAL].idxmin()].to_dict()
            found.append({"dataset": run["dataset"], "seed": run["seed"], "run": _name(run),
                          "general": _cell(run, GENERAL), "in-domain": _cell(run, IN_DOMAIN), "rival": _name(rival),
                          "rival's": _cell(rival, GENERAL), "better": _better(run, rival)})
    return found


def _better(run: dict[Any, Any], rival: dict[Any, Any]) -> str:
    if run[GENERAL] >= rival[GENERAL]:
        return NO
    return YES if run[f"{GENERAL}_high"] < rival[f"{GENERAL}_low"] else OVERLAP


def _name(run: dict[Any, Any]) -> str:
    setting = run["setting"]
    return label(str(run["method"])) + ("" if pd.isna(setting) else f" {setting:g}")


def _cell(run: dict[Any, Any], measure: str) -> str:
    return cell(run[measure], run[f"{measure}_low"], run[f"{measure}_high"])


def verdict(compared: pd.DataFrame) -> str:
    """Say in a sentence which newer defenses are better; `compared` is `against_paper`."""
    if compared.empty:
        return "No newer defense was run beside one of the paper that may keep as much of the narrow task."
    clear, perhaps = (list(dict.fromkeys(compared.loc[compared["better"] == grade, "run"])) for grade in (YES, OVERLAP))
    rivals = "every defense of the paper that may keep as much of the narrow task"
    if clear:
        return (f"Better than {rivals}, with disjoint intervals: {', '.join(clear)}. With few answers and single runs "
                "this is a reason to look, and no proof.")
    if perhaps:
        return (f"None of the newer defenses is clearly better than {rivals}. Fewer general answers are misaligned "
                f"under {', '.join(perhaps)}, but the intervals overlap.")
    return f"None of the newer defenses is better than {rivals}."


def readable(compared: pd.DataFrame) -> pd.DataFrame:
    """Return `against_paper` with headings; the data set and the seed only where there are several."""
    several = [name for name in ("dataset", "seed") if compared[name].nunique() > 1]
    return compared[[*several, *HEADINGS]].rename(columns=HEADINGS | {"dataset": "Data set", "seed": "Seed"})
