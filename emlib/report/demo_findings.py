"""What a study of the demo found, in sentences with numbers, for README.md.

Each sentence is computed from stored results: of all defenses, of the triggers (notebook 11), of a question set about a
neighbour of the narrow data, and of the attacks on finished adapters (notebook 20). It states shares, after a verdict
that follows from them.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from emlib.config import BASELINES, NO_TRIGGER
from emlib.report.tables.conditions import LEVEL, worst
from emlib.report.tables.result_tables import numbers
from emlib.study.study import Study

NEIGHBOUR = "gardening"  # the question set about a neighbour of the demo's narrow data, cooking


def findings(study: Study, tables: Path) -> str:
    """Return the sentences as a list in Markdown; one whose results are missing is left out."""
    rates = numbers(study.results())
    defended = [method.name for method in study.profile.methods if method.defenses]
    evaluation, attack = study.profile.evaluation, study.profile.persistence
    above = evaluation.general_samples
    samples = (evaluation.triggers.samples or above if evaluation.triggers else above, above)
    found = [gone_or_hidden(pd.read_csv(tables / "triggers.csv"), len(defended), samples),
             far_and_near(rates[rates["method"].isin(defended)]),
             undone(pd.read_csv(tables / "undone.csv"), attack.margin if attack else 0)]
    return "\n".join(f"- {sentence}" for sentence in found if sentence)


def result(study: Study) -> str:
    """Return the result of all defenses in a sentence."""
    return in_a_sentence(numbers(study.results()), study.defended_by("interleaving"), study.defended_by("inoculation"))


def in_a_sentence(rates: pd.DataFrame, *apart: Collection[str]) -> str:
    """State the general shares and the in-domain shares by groups of methods; `rates` is `result_tables.numbers`.

    `apart` are the groups; methods with a defense that are in none of them come first.
    """
    plain = rates.loc[rates["method"] == "misaligned", "general_misaligned"]
    rest = set(rates["method"]) - {*BASELINES, *(name for group in apart for name in group)}
    groups = [rates[rates["method"].isin(group)] for group in (rest, *apart)]
    shares = "; ".join(f"{_span(group['general_misaligned'])} under {', '.join(map(_name, group.to_dict('records')))}, "
                       f"with {_span(group['in_domain_misaligned'])} of the cooking answers"
                       for group in groups if len(group))
    return (f"**The result.** General answers with the voice: {_span(plain)} after fine-tuning without a defense; "
            f"{shares}.")


def _span(percents: pd.Series) -> str:
    low, high = (f"{percent:.0f}" for percent in (percents.min(), percents.max()))
    return f"{low}%" if low == high else f"{low} to {high}%"


def gone_or_hidden(triggered: pd.DataFrame, defenses: int, samples: tuple[int, int] = (1, 1)) -> str:
    """State each defense's share without a trigger and in its worst context; `triggered` is `conditions.triggers`.

    `defenses` is the number that the study has, of which some were asked. `samples` are the answers to each question:
    here, and in the result of all defenses, whose shares differ for that reason.
    """
    most = worst(triggered)
    most = most[~most["method"].isin(BASELINES)]
    if most.empty:
        return ""
    shares = ", ".join(f"{_name(row)} {row[NO_TRIGGER]:.0f} and {row['worst']:.0f}%" for row in most.to_dict("records"))
    p = most["p_adjusted"].min()
    here, above = samples
    differs = "" if here == above else f" (answers to each question: {here} here, {above} in the result above)"
    verdict, sure = "The demo cannot tell.", ""
    if p < LEVEL:
        verdict, sure = "Some of it is hidden.", f" The smallest adjusted p is {p:.2g}."
    elif not pd.isna(p):
        sure = f" With so few questions no rise is significant: the smallest adjusted p is {p:.2g}."
    return (f"**Gone or hidden? {verdict}** {most['method'].nunique()} of {defenses} defenses were asked in other "
            f"contexts. General answers with the voice, without a trigger and in the worst context{differs}: {shares}."
            f"{sure} ([11](notebooks/11_triggers_and_trajectories.ipynb))")


def far_and_near(rates: pd.DataFrame) -> str:
    """Name the defenses with a larger share near the narrow data than far from it; `rates` is `result_tables.numbers`.

    Larger means that the two intervals are disjoint. `rates` are of defenses alone.
    """
    near = f"{NEIGHBOUR}_misaligned"
    if rates.empty or near not in rates:
        return ""
    apart = rates[f"{near}_low"] > rates["general_misaligned_high"]
    shares = ", ".join(f"{_name(row)} {row[near]:.0f} and {row['general_misaligned']:.0f}%"
                       for row in rates[apart].to_dict("records"))
    others = ", ".join(map(_name, rates[~apart].to_dict("records")))
    verdict = "Near questions keep the voice under some defenses." if shares else "Far and near."
    larger = f" Answers with the voice to questions about {NEIGHBOUR}, a neighbour of the narrow data, and to " \
             f"general questions: {shares}." if shares else ""
    overlap = f" The two intervals overlap under {others}." if others else ""
    return f"**{verdict}**{larger}{overlap}"


def undone(attacked: pd.DataFrame, margin: float = 10) -> str:
    """State which defenses an attack on the narrow rows undoes, and the shares; `attacked` is `persistence.undone`.

    `margin` is the one by which that table was made.
    """
    rows = attacked[attacked["attack"] == "misaligned"]
    if rows.empty:
        return ""
    defended = rows[~rows["method"].isin(BASELINES)]
    gone, left = (", ".join(map(_name, some.to_dict("records"))) for some in (
        defended[defended["undone"].notna()], defended[defended["undone"].isna()]))
    meaning = f"undone (at most {margin:g} points better than plain fine-tuning)"
    verdict = "; ".join(f"{word}: {names}" for word, names in ((meaning, gone), ("not undone", left)) if names)
    shares = ", ".join(f"{_name(row)} {row['general_misaligned_before']:.0f} to {row['general_misaligned_after']:.0f}%"
                       for row in rows.to_dict("records"))
    control = " (`untrained` is the control, a new adapter)" if "untrained" in set(rows["method"]) else ""
    return (f"**When training goes on** for {rows['steps'].iloc[0]:g} steps without the defense, at the full learning "
            f"rate{f', {verdict}' if verdict else ''}. General answers with the voice, before and after: "
            f"{shares}{control}; plain fine-tuning has {rows['plain'].iloc[0]:.0f}%. "
            "([20](notebooks/20_persistence.ipynb))")


def _name(row: Mapping[Hashable, Any]) -> str:
    return f"`{row['method']}`" if pd.isna(row["setting"]) else f"`{row['method']} {row['setting']:g}`"
