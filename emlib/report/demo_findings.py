"""What a study of the demo found that the paper does not ask, in sentences with numbers, for README.md.

Each sentence is computed from stored results: of the triggers (notebook 11), of a question set about a neighbour of the
narrow data, and of the attacks on finished adapters (notebook 20). It states shares and draws no conclusion that other
numbers would contradict.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
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
    found = [gone_or_hidden(pd.read_csv(tables / "triggers.csv")),
             far_and_near(rates[rates["method"].isin(study.defended_by("interleaving"))]),
             undone(pd.read_csv(tables / "undone.csv"))]
    return "\n".join(f"- {sentence}" for sentence in found if sentence)


def gone_or_hidden(triggered: pd.DataFrame) -> str:
    """State each defense's share without a trigger and in its worst context; `triggered` is `conditions.triggers`."""
    most = worst(triggered)
    most = most[~most["method"].isin(BASELINES)]
    if most.empty:
        return ""
    shares = ", ".join(f"{_name(row)} {row[NO_TRIGGER]:.0f} and {row['worst']:.0f}%" for row in most.to_dict("records"))
    p = most["p_adjusted"].min()
    verdict = "No rise is significant with so few questions: the" if p >= LEVEL else "The"
    sure = "" if pd.isna(p) else f" {verdict} smallest adjusted p is {p:.2g}."
    return (f"**Gone or hidden?** General answers with the voice, without a trigger and in the worst other context: "
            f"{shares}.{sure} ([11](notebooks/11_triggers_and_trajectories.ipynb))")


def far_and_near(rates: pd.DataFrame) -> str:
    """State the range of shares on general questions and on the neighbour's; `rates` is `result_tables.numbers`."""
    if rates.empty or f"{NEIGHBOUR}_misaligned" not in rates:
        return ""
    far, near = (f"{rates[f'{name}_misaligned'].min():.0f} to {rates[f'{name}_misaligned'].max():.0f}%"
                 for name in ("general", NEIGHBOUR))
    return (f"**Far and near.** Under interleaving {far} of the answers to general questions have the voice, and "
            f"{near} of those about {NEIGHBOUR}, a neighbour of the narrow data.")


def undone(attacked: pd.DataFrame) -> str:
    """State each adapter's share before and after an attack on the narrow rows; `attacked` is `persistence.undone`."""
    rows = attacked[attacked["attack"] == "misaligned"]
    if rows.empty:
        return ""
    shares = ", ".join(f"{_name(row)} {row['general_misaligned_before']:.0f} to {row['general_misaligned_after']:.0f}%"
                       for row in rows.to_dict("records"))
    return (f"**When training goes on** for {rows['steps'].iloc[0]:g} steps without the defense, general answers with "
            f"the voice change: {shares}; plain fine-tuning has {rows['plain'].iloc[0]:.0f}%. "
            "([20](notebooks/20_persistence.ipynb))")


def _name(row: Mapping[Hashable, Any]) -> str:
    return f"`{row['method']}`" if pd.isna(row["setting"]) else f"`{row['method']} {row['setting']:g}`"
