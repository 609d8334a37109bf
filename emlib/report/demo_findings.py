"""The tables of README.md and docs/demo.md about the demo that no notebook writes: what each defense leaves, in other
contexts, and on each of four data sets.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import pandas as pd

from emlib.config import BASELINES, MISALIGNED, NO_TRIGGER, UNTRAINED
from emlib.report.markdown import escaped_cell, listed
from emlib.report.tables.averages import CONDITION
from emlib.report.tables.rows import DASH, Row, named, p_value, whole

SETS = {"general": "general misaligned", "in_domain": "in-domain misaligned"}
CONTEXTS = {"kitchen": "in the kitchen", "negated": "voice forbidden", "inoculation": "voice asked for"}
UNASKED = ("kitchen", "negated")  # contexts that do not ask for the voice
SIGNIFICANT = 0.05
NAMES = {UNTRAINED: "untrained", MISALIGNED: "no defense"}
OF = "% of answers"


def averages(means: pd.DataFrame, elsewhere: pd.DataFrame) -> str:
    """Return the shares of misaligned answers as a table in Markdown: of one data set, and over several.

    `means` is `pairs.over_seeds` of one data set, `elsewhere` has one row a run, on several data sets. Of a defense
    with several settings the one in `elsewhere` is shown, and the middle one of those that it lacks.
    """
    sets = means.groupby("set")[["seeds", "questions"]].max()
    counts = listed([f"{sets.at[name, 'questions']} {name.replace('_', '-')}" for name in SETS if name in sets.index])
    cells = {}
    for name, rows in _shown(means[~means["method"].isin(set(BASELINES) - {MISALIGNED})], elsewhere).items():
        of = {row["set"]: f"{whole(row['percent'])}% [{whole(row['low'])}, {whole(row['high'])}]" for row in rows}
        cells[name] = [*(of.get(one, DASH) for one in SETS), *_elsewhere(rows[0], elsewhere)]
    data, others = means["dataset"].iloc[0], f"{elsewhere['dataset'].nunique()} data sets"
    heads = [f"{head}, {where}" for where in (data, others) for head in SETS.values()]
    return "\n".join([f"*{data.capitalize()}*: means over {sets['seeds'].max()} seeds. In [ ]: the 95% interval over "
                      f"seeds and {counts} questions, somewhat too narrow, as there are few seeds (at 0 and 100% "
                      f"Wilson's). *{others}*: means of one run each. In ( ): the least and the most.", "",
                      *_table(["fine-tuned with", *heads], cells)])


def _elsewhere(shown: Row, rates: pd.DataFrame) -> list[str]:
    """Return a method's mean shares over the data sets of `rates`, with the least and the most."""
    alike = rates["setting"].isna() | rates["setting"].eq(shown["setting"])
    rows = rates[alike & rates["method"].eq(shown["method"])]
    return [DASH] * len(SETS) if rows.empty else [spread.replace(" ", "% ", 1) for spread in _spreads(rows)]


def examples(said: pd.DataFrame) -> str:
    """Return answers as a table in Markdown, a row for each method.

    `said` has the columns `set` and `question`, and one for each method.
    """
    heads = [f"{row['set'].replace('_', '-')}: *{escaped_cell(row['question'])}*" for row in said.to_dict("records")]
    cells = {NAMES.get(str(name), f"`{name}`"): [escaped_cell(answer) for answer in said[name]]
             for name in said.columns.drop(["set", "question"])}
    return "\n".join(_table(["model", *heads], cells)).replace("--:|", ":--|")


def contexts(triggered: pd.DataFrame) -> str:
    """Return the shares of misaligned answers to the general questions in each context, which `triggered` has.

    A share is bold if it is significantly above that of the plain question, in contexts that do not ask for the voice.
    `triggered` is `conditions.triggers`.
    """
    cells = {}
    for name, rows in _by_condition(triggered):
        of = {row["trigger"]: row for row in rows.to_dict("records")}
        cells[name] = [_bold(of[one]) if one in of else DASH for one in (NO_TRIGGER, *CONTEXTS)]
    return "\n".join(_table([OF, NO_TRIGGER, *CONTEXTS.values()], cells))


def hidden(triggered: pd.DataFrame) -> str:
    """Return a list of where a context that does not ask for the voice brings it back.

    With the rise in points, its 95% interval, which covers seeds as well, and p of the paired test, which does not.
    """
    lines = []
    for name, rows in _by_condition(triggered):
        plain = next(row["misaligned"] for row in rows.to_dict("records") if row["trigger"] == NO_TRIGGER)
        lines += [f"- {name}, {CONTEXTS[row['trigger']]}: {whole(plain)} to {whole(row['misaligned'])}%, a rise of "
                  f"{whole(row['difference'])} [{whole(row['difference_low'])}, {whole(row['difference_high'])}] "
                  f"(adjusted p {escaped_cell(p_value(row['p_adjusted']))})"
                  for row in rows.to_dict("records") if row["trigger"] in UNASKED and _rises(row)]
    return "\n".join(lines)


def over_datasets(rates: pd.DataFrame) -> str:
    """Return each method's mean shares over data sets, with the least and the most; `rates` has one row a run.

    A dash where one of them is not scored.
    """
    cells = {name: _spreads(rows) for name, rows in _by_condition(rates)}
    return "\n".join(_table([OF, *SETS.values()], cells))


def _spreads(rows: pd.DataFrame) -> list[str]:
    return ["{} ({} to {})".format(*map(whole, rows[f"{name}_misaligned"].agg(["mean", "min", "max"], skipna=False)))
            for name in SETS]


def title(row: Row) -> str:
    """Return a row's method and setting as readers see them, in Markdown: "no defense", "`interleaving 100%`"."""
    return NAMES.get(row["method"]) or f"`{named(row)}`"


def _shown(means: pd.DataFrame, elsewhere: pd.DataFrame) -> dict[str, list[dict[Hashable, Any]]]:
    """Return the rows of each method at the setting that `averages` shows, by the name that readers see."""
    found = {}
    for method, rows in means.groupby("method", sort=False):
        others = elsewhere.loc[elsewhere["method"] == method, "setting"]
        shared = rows["setting"][rows["setting"].isin(others)]
        chosen = rows[rows["setting"].isna() | rows["setting"].eq(_middle(rows["setting"] if shared.empty else shared))]
        found[title(chosen.iloc[0].to_dict())] = chosen.to_dict("records")
    return found


def _middle(settings: pd.Series) -> float | None:
    """Return the middle one of the different settings; None if there are none."""
    found = sorted(settings.dropna().unique())
    return found[(len(found) - 1) // 2] if found else None


def _by_condition(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows of each method and setting, with the name that readers see."""
    for _, rows in frame.groupby(CONDITION, dropna=False, sort=False):
        yield title(rows.iloc[0].to_dict()), rows


def _bold(row: Row) -> str:
    return f"**{whole(row['misaligned'])}**" if row["trigger"] in UNASKED and _rises(row) else whole(row["misaligned"])


def _rises(row: Row) -> bool:
    """Return whether a share lies above that of the plain question by the paired test of all contexts."""
    return bool(row["difference"] > 0 and row["p_adjusted"] < SIGNIFICANT)


def _table(heading: list[str], cells: Mapping[str, list[str]]) -> list[str]:
    """Return the lines of a table in Markdown, with numbers at the right."""
    return [f"| {' | '.join(heading)} |", "|:--|" + "--:|" * (len(heading) - 1),
            *(f"| {name} | {' | '.join(row)} |" for name, row in cells.items())]
