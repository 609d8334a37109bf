"""What a study of the demo found, in sentences with numbers, for README.md.

Each sentence is computed from stored results: of all defenses, of the triggers (notebook 11), of a question set about a
neighbour of the narrow data, and of the attacks on finished adapters (notebook 20). It states shares, and a verdict
that follows from them by the rule of docs/questions-and-measures.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from emlib.config import BASELINES, NO_TRIGGER
from emlib.data.sizes import Sizes
from emlib.report.tables import persistence
from emlib.report.tables.averages import CONDITION
from emlib.report.tables.conditions import LEVEL, worst
from emlib.report.tables.rows import IDENTITY, condition
from emlib.study.study import Study

NEIGHBOUR = "gardening"  # the question set about a neighbour of the demo's narrow data, cooking
RULE = "docs/questions-and-measures.md#removed-or-only-hidden"
VOICE = {"general": "general answers", "in_domain": "cooking answers"}


def findings(study: Study, tables: Path, full: Study, full_tables: Path) -> str:
    """Return the sentences as a list in Markdown; one whose results are missing is left out.

    `full` is the demo with more seeds and questions; what happens after training is known of `study` alone.
    """
    attack, evaluation, general = study.profile.persistence, full.profile.evaluation, full.inputs.general
    size, above = general.size(Sizes()), evaluation.general_samples
    samples = (evaluation.triggers.samples or above if evaluation.triggers else above, above)
    defended = [method.name for method in study.profile.methods if method.defenses]
    means = in_columns(pd.read_csv(full_tables / "over_seeds.csv"))
    found = [removed_or_hidden(pd.read_csv(full_tables / "triggers_over_seeds.csv"), len(defended),
                               size.clusters or size.rows, samples),
             far_and_near(means[means["method"].isin(defended)]),
             lasting(pd.read_csv(tables / "persistence.csv"), attack.margin if attack else 0)]
    return "\n".join(f"- {sentence}" for sentence in found if sentence)


def in_columns(means: pd.DataFrame) -> pd.DataFrame:
    """Return `pairs.over_seeds` with a row for each method and setting, and the columns of `result_tables.numbers`."""
    rows = []
    for trained, some in means.groupby(CONDITION, sort=False, dropna=False):
        rows.append(dict(zip(CONDITION, trained, strict=True)) | {
            f"{row['set']}_misaligned{end}": row[name] for row in some.to_dict("records")
            for end, name in (("", "percent"), ("_low", "low"), ("_high", "high"))})
    return pd.DataFrame(rows)


def averages(means: pd.DataFrame) -> str:
    """Return a table in Markdown: a line for fine-tuning without a defense and for each defense, with 95% intervals.

    `means` is `pairs.over_seeds` of one data set.
    """
    means = means[means["set"].isin(VOICE)]
    sets = means.groupby("set")[["seeds", "questions"]].max()
    questions = " and ".join(f"{count} {name.replace('_', '-')}" for name, count in sets["questions"].items())
    headings = " | ".join(f"{VOICE[name]} with the voice" for name in sets.index)
    lines = [f"Means of {sets['seeds'].max()} seeds and {questions} questions, with 95% intervals over both:", "",
             f"| fine-tuned under | {headings} |", "|:--|--:|--:|"]
    tuned = means[~means["method"].isin(set(BASELINES) - {"misaligned"})]
    for _, rows in tuned.groupby(CONDITION, sort=False, dropna=False):
        name = "no defense" if rows.iloc[0]["method"] == "misaligned" else _name(rows.iloc[0].to_dict())
        shares = {row["set"]: f"{row['percent']:.0f}% [{row['low']:.0f}, {row['high']:.0f}]"
                  for row in rows.to_dict("records")}
        lines.append(f"| {name} | {' | '.join(shares.get(one, '–') for one in sets.index)} |")
    return "\n".join(lines)


def removed_or_hidden(triggered: pd.DataFrame, defenses: int, questions: int, samples: tuple[int, int] = (1, 1)) -> str:
    """State each defense's share without a trigger and in its worst context; `triggered` is `conditions.triggers`.

    `defenses` is the number that the study has, of which some were asked, and `questions` that of different questions.
    `samples` are the answers to each question: here, and in the table of all defenses, whose shares differ for that
    reason.
    """
    most = worst(triggered)
    most = most[~most["method"].isin(BASELINES)]
    if most.empty:
        return ""
    shares = ", ".join(f"{_name(row)} {row[NO_TRIGGER]:.0f} and {row['worst']:.0f}%" for row in most.to_dict("records"))
    here, above = samples
    differs = "" if here == above else f" (answers to each question: {here} here, {above} in the table above)"
    return (f"**Does a defense remove the voice, or only hide it?** {most['method'].nunique()} of {defenses} defenses "
            f"were also asked in other contexts. General answers with the voice to the plain question, and in the "
            f"worst context{differs}: {shares}. {_verdict(triggered, questions)} ([how to read this]({RULE}), "
            "[notebook 11](notebooks/11_triggers_and_trajectories.ipynb))")


def _verdict(triggered: pd.DataFrame, questions: int) -> str:
    """Apply the rule: first the tests; where none can be significant, the intervals."""
    defended = triggered[~triggered["method"].isin(BASELINES)]
    sure = defended[(defended["difference"] > 0) & (defended["p_adjusted"] < LEVEL)]
    if len(sure):
        return f"The rise is significant under {_names(sure)}: there the voice is hidden, at least in part."
    tests = int(triggered["p_adjusted"].notna().sum())
    too_few = tests * 2.0 ** (1 - questions) >= LEVEL
    why = (f"No test can be significant with {questions} questions and {tests} comparisons." if too_few else
           f"No rise is significant: the smallest adjusted p is {defended['p_adjusted'].min():.2g}.")
    plain = defended.loc[defended["trigger"] == NO_TRIGGER, [*IDENTITY, "misaligned_high"]]
    beside = defended.merge(plain, on=IDENTITY, suffixes=("", "_plain"))
    apart = beside[beside["misaligned_low"] > beside["misaligned_high_plain"]]
    if apart.empty:
        return f"{why} The intervals overlap as well, so these runs cannot tell."
    rest = defended[~defended["method"].isin(apart["method"])]
    others = f" They cannot tell under {_names(rest)}." if len(rest) else ""
    return (f"{why} The intervals of some contexts lie above that of the plain question under {_names(apart)}, which "
            f"suggests that a part is hidden, and does not prove it.{others}")


def far_and_near(rates: pd.DataFrame) -> str:
    """Name the defenses with a larger share near the narrow data than far from it; `rates` is `in_columns`.

    Larger means that the two intervals are disjoint. `rates` are of defenses alone.
    """
    near = f"{NEIGHBOUR}_misaligned"
    if rates.empty or near not in rates:
        return ""
    apart = rates[f"{near}_low"] > rates["general_misaligned_high"]
    shares = "; ".join(f"under {_name(row)} {row['general_misaligned']:.0f}% of the general answers have it, and "
                       f"{row[near]:.0f}% of those about {NEIGHBOUR}" for row in rates[apart].to_dict("records"))
    title = "**Is the voice gone from questions near the narrow data?**"
    if not shares:
        return f"{title} Under no defense is the interval of answers about {NEIGHBOUR} above that of general answers."
    others = "" if apart.all() else " Under the others the intervals do not show that."
    return f"{title} Not always: {shares}.{others}"


def lasting(along: pd.DataFrame, margin: float = 10) -> str:
    """State the shares while an attack on the narrow rows goes on, and what it undoes.

    `along` is `persistence.persistence`. A defense is undone within `margin` points of plain fine-tuning.
    """
    attacked = along[(along["attack"] == "misaligned") & (along["method"] != persistence.UNDEFENDED)]
    defended = attacked[~attacked["method"].isin(BASELINES)]
    if defended.empty:
        return ""
    steps = sorted({*attacked["steps"]})
    shares = "; ".join(_along(runs) for _, runs in attacked.groupby(CONDITION, sort=False, dropna=False))
    ends = persistence.undone(defended, margin)
    gone, left = ends[ends["undone"].notna()], ends[ends["undone"].isna()]
    verdict = " ".join([
        f"{_names(gone)} came within {margin:g} points of plain fine-tuning ({attacked['plain'].mean():.0f}%): the "
        "defense is undone." if len(gone) else "",
        f"{_names(left)} did not." if len(left) else ""]).strip()
    return (f"**Does a defense last when training goes on without it?** General answers with the voice after "
            f"{', '.join(f'{step:g}' for step in steps[:-1])} and {steps[-1]:g} further steps: {shares}. {verdict} "
            "([20](notebooks/20_persistence.ipynb))")


def _along(runs: pd.DataFrame) -> str:
    """Return a condition with its shares after each number of steps, as means over seeds."""
    shares = [f"{share:.0f}" for share in runs.groupby("steps")["general_misaligned"].mean()]
    control = " (a new adapter, the control)" if runs["method"].iloc[0] == persistence.UNTRAINED else ""
    return f"{_name(runs.iloc[0].to_dict())}{control} {', '.join(shares[:-1])} and {shares[-1]}%"


def _names(rows: pd.DataFrame) -> str:
    """Name each condition of some rows once, as in "a, b and c"."""
    named = list(dict.fromkeys(_name(row) for row in rows.to_dict("records")))
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def _name(row: Mapping[Hashable, Any]) -> str:
    return f"`{condition(row)}`"
