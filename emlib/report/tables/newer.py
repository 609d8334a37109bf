"""Newer defenses against the paper's, on both sides of the trade-off: general and in-domain misalignment.

A run of a newer method is compared with the best run of the paper's methods that may keep as much of the narrow task:
of those whose in-domain interval does not lie below the run's, the one with the fewest misaligned general answers, and
of equals the one that keeps most. So none of them is as good as a better run on both sides. Fewer misaligned general
answers alone do not make the run better, because a model that learns nothing has none: it must keep no less of the
narrow task. It is clearly better if the two 95% intervals of the general share are disjoint. Plain fine-tuning is among
the paper's methods, so that there nearly always is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from emlib.config import BASELINES
from emlib.report.paper import published
from emlib.report.tables.rows import cell_of, named

GENERAL, IN_DOMAIN = "general_misaligned", "in_domain_misaligned"
YES, PERHAPS, EQUAL, NO = "yes", "perhaps: intervals overlap", "equal", "no"
LESS, WITHIN = "no: it keeps less of the narrow task", "open: it keeps less, intervals overlap"
OWN, RIVALS = ("general", "in-domain"), ("rival's", "rival's in-domain")
HEADINGS = {"run": "Newer defense, setting", "general": "General misaligned %", "in-domain": "In-domain misaligned %",
            "rival": "Best of the paper that may keep as much", "rival's": "Its general misaligned %",
            "rival's in-domain": "Its in-domain misaligned %", "better": "Better"}
RIVAL = "the best of the paper's methods that may keep as much of the narrow task"
# Fewest general, most in-domain; of equals the one whose intervals are hardest to be clear of; then by name.
BEST = {GENERAL: True, IN_DOMAIN: False, f"{GENERAL}_low": True, f"{IN_DOMAIN}_low": True, "method": True,
        "setting": True}


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
        reach = runs[of_paper & (runs[f"{IN_DOMAIN}_high"] >= run[f"{IN_DOMAIN}_low"])]
        for rival in reach.sort_values(list(BEST), ascending=list(BEST.values())).head(1).to_dict("records"):
            found.append({"dataset": run["dataset"], "seed": run["seed"], "run": named(run),
                          "general": cell_of(run, GENERAL), "in-domain": cell_of(run, IN_DOMAIN),
                          "rival": named(rival), "rival's": cell_of(rival, GENERAL),
                          "rival's in-domain": cell_of(rival, IN_DOMAIN), "better": _better(run, rival)})
    return found


def _better(run: dict[Any, Any], rival: dict[Any, Any]) -> str:
    """Grade both sides: a better run is worse on neither and better on one; `YES` takes disjoint general intervals.

    Likewise `LESS` takes disjoint in-domain intervals, and otherwise it is `WITHIN`.
    """
    fewer, more = rival[GENERAL] - run[GENERAL], run[IN_DOMAIN] - rival[IN_DOMAIN]
    if fewer == more == 0:
        return EQUAL
    if fewer > 0 > more:
        return LESS if run[f"{IN_DOMAIN}_high"] < rival[f"{IN_DOMAIN}_low"] else WITHIN
    if min(fewer, more) < 0:
        return NO
    return YES if run[f"{GENERAL}_high"] < rival[f"{GENERAL}_low"] else PERHAPS


def verdict(compared: pd.DataFrame) -> str:
    """Say in some sentences which newer defenses are better, with both shares; `compared` is `against_paper`."""
    if compared.empty:
        return "No newer defense was run beside one of the paper that may keep as much of the narrow task."
    graded = {grade: _graded(compared, grade) for grade in (YES, EQUAL, PERHAPS, LESS, WITHIN)}
    found = [better(compared)]
    if not any(graded.values()):
        return found[0]
    for grade, start in ((EQUAL, "Equal"), (PERHAPS, "Ahead, but the intervals overlap"),
                         (LESS, "Fewer general misaligned, but less of the narrow task kept"),
                         (WITHIN, "Fewer general misaligned, but perhaps less of the narrow task kept")):
        if graded[grade]:
            found.append(f"{start}: {graded[grade]}.")
    rivals = dict.fromkeys(f"`{row['rival']}` ({_shares(row, RIVALS)})" for row in compared.to_dict("records"))
    return f"{' '.join(found)} In brackets: general/in-domain misaligned. The paper's best here: {', '.join(rivals)}."


def better(compared: pd.DataFrame) -> str:
    """Say which newer defenses are worth more seeds, with both shares: those ahead of the best of the paper's."""
    ahead = _graded(compared, YES)
    return ("None is shown to be better: single runs cannot show it. Worth three seeds, with an interval apart from "
            f"that of {RIVAL}: {ahead}." if ahead else f"No newer defense clearly beats {RIVAL}.")


def _graded(compared: pd.DataFrame, grade: str) -> str:
    """Name each defense that has the grade in some run, with its shares, the rival that it beats, and the runs.

    The number of runs is left out where it is all of them.
    """
    found = []
    for name, runs in compared.groupby("run", sort=False):
        rows = runs[runs["better"] == grade].to_dict("records")
        parts = [", ".join(dict.fromkeys(_shares(row, OWN) for row in rows))]
        if grade in (YES, PERHAPS):
            parts += dict.fromkeys(f"`{row['rival']}`: {_shares(row, RIVALS)}" for row in rows)
        if 0 < len(rows) < len(runs):
            parts.append(f"in {len(rows)} of {len(runs)} runs")
        if rows:
            found.append(f"`{name}` ({'; '.join(parts)})")
    return ", ".join(found)


def _shares(row: Mapping[Any, Any], columns: tuple[str, str]) -> str:
    """Return the general and the in-domain share of a run, or of its rival, as in 14.6/37.5%."""
    return "/".join(_share(row[name]) for name in columns) + "%"


def _share(cell: str) -> str:
    """Return the share of a cell without its interval."""
    return cell.split()[0]


def readable(compared: pd.DataFrame) -> pd.DataFrame:
    """Return `against_paper` with headings; the data set and the seed only where there are several."""
    several = [name for name in ("dataset", "seed") if compared[name].nunique() > 1]
    return compared[[*several, *HEADINGS]].rename(columns=HEADINGS | {"dataset": "Data set", "seed": "Seed"})
