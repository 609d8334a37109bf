"""The tables of README.md about the demo: what each defense leaves, and where the voice is still found.

Both show fine-tuning without a defense, and each defense at the middle one of its settings.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from emlib.config import ALIGNED, BASELINES, MISALIGNED, NO_TRIGGER, UNTRAINED
from emlib.report.markdown import listed
from emlib.report.tables.averages import CONDITION
from emlib.report.tables.rows import DASH, condition, whole

NEIGHBOUR = "gardening"  # the question set about a neighbour of the demo's narrow data, cooking
SHOWN = {"general": "general misaligned", "in_domain": "in-domain misaligned"}
CONTEXTS = {"kitchen": "in the kitchen", "negated": "voice forbidden", "inoculation": "voice asked for"}
NAMES = {UNTRAINED: "before fine-tuning", MISALIGNED: "no defense"}


def averages(means: pd.DataFrame) -> str:
    """Return the general and in-domain shares as a table in Markdown.

    `means` is `pairs.over_seeds` of one data set. Of an even number of settings the smaller middle one is shown.
    """
    means = means[means["set"].isin(SHOWN)]
    sets = means.groupby("set")[["seeds", "questions"]].max()
    questions = " and ".join(f"{count} {name.replace('_', '-')}" for name, count in sets["questions"].items())
    shown = _shown(means[~means["method"].isin(set(BASELINES) - {MISALIGNED})])
    cells = {name: [next((f"{whole(row['percent'])}% [{whole(row['low'])}, {whole(row['high'])}]"
                          for row in rows if row["set"] == one), DASH) for one in sets.index]
             for name, rows in shown.items()}
    return "\n".join([f"Means and 95% intervals over {sets['seeds'].max()} seeds, {questions} questions; of a defense "
                      "with several settings, the middle one:", "",
                      *_table(["fine-tuned with", *(SHOWN[name] for name in sets.index)], cells)])


def elsewhere(means: pd.DataFrame, triggered: pd.DataFrame, along: pd.DataFrame) -> str:
    """Return the shares of misaligned answers in other contexts, near the narrow data, and after further training.

    A share is bold if its interval lies wholly above that of the plain question. `means` is `pairs.over_seeds`, of
    which the general share is the plain one for the neighbour; `triggered` is `conditions.triggers`, with a plain one
    of its own; `along` is `persistence.persistence`, whose shares after each number of steps stand in one cell.
    """
    attacked = along[along["attack"] == MISALIGNED]
    steps = [f"{step:g}" for step in sorted(set(attacked["steps"]))]
    cells = {}
    for name, rows in _shown(means[means["method"] != ALIGNED]).items():
        sets = {row["set"]: (row["percent"], row["low"], row["high"]) for row in rows}
        asked = _of(triggered, rows[0])
        contexts = {row["trigger"]: (row["misaligned"], row["misaligned_low"], row["misaligned_high"])
                    for row in asked.to_dict("records")}
        after = _of(attacked, rows[0]).groupby("steps")["general_misaligned"].mean()
        cells[name] = [_share(sets, "general", "general"), *(_share(contexts, NO_TRIGGER, one) for one in CONTEXTS),
                       _share(sets, "general", NEIGHBOUR), ", ".join(map(whole, after)) or DASH]
    return "\n".join(_table(["% of answers", "plain", *CONTEXTS.values(), f"about {NEIGHBOUR}",
                             f"after {listed(steps)} further steps"], cells))


def _shown(means: pd.DataFrame) -> dict[str, list[dict[Hashable, Any]]]:
    """Return the rows of each method at the middle one of its settings, by the name that readers see."""
    found = {}
    for method, settings in means.groupby("method", sort=False):
        rows = settings[settings["setting"].isna() | settings["setting"].eq(_middle(settings["setting"]))]
        found[NAMES.get(str(method)) or f"`{condition(rows.iloc[0].to_dict())}`"] = rows.to_dict("records")
    return found


def _middle(settings: pd.Series) -> float | None:
    """Return the middle one of the different settings; None if there are none."""
    found = sorted(settings.dropna().unique())
    return found[(len(found) - 1) // 2] if found else None


def _of(frame: pd.DataFrame, row: Mapping[Hashable, Any]) -> pd.DataFrame:
    """Return the rows of the same method and setting."""
    return frame.merge(pd.DataFrame([{name: row[name] for name in CONDITION}]).astype(
        {"setting": frame["setting"].dtype}), on=CONDITION)


def _share(shares: Mapping[str, tuple[float, float, float]], plain: str, one: str) -> str:
    """Format a share with its interval; bold if the interval lies above that of the plain question."""
    if one not in shares:
        return DASH
    share, low, _ = shares[one]
    return f"**{whole(share)}**" if low > shares[plain][2] else whole(share)


def _table(heading: list[str], cells: Mapping[str, list[str]]) -> list[str]:
    """Return the lines of a table in Markdown, with numbers at the right."""
    return [f"| {' | '.join(heading)} |", "|:--|" + "--:|" * (len(heading) - 1),
            *(f"| {name} | {' | '.join(row)} |" for name, row in cells.items())]
