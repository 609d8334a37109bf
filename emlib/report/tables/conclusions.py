"""All that a study found about each method in one table: notebook 15 begins with it.

Every column comes from stored results, and its heading names the notebook that computes them. Numbers are means over
seeds and data sets; a dash stands for what was not run on every data set, was not scored for every seed, or is not
measured by the judge. A method with fewer seeds than others says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import pandas as pd

from emlib.config import NO_TRIGGER
from emlib.report.tables import conditions, costs, persistence
from emlib.report.tables.averages import CONDITION, fewer_seeds, over_tasks
from emlib.report.tables.rows import DASH, shown, whole
from emlib.study.study import Study

MEASURES = {"general_misaligned": "General misaligned % (02 to 10)",
            "in_domain_misaligned": "In-domain misaligned % (02 to 10)",
            "general_incoherent": "General incoherent % (02 to 10)"}
HIDES = "Plain question, worst context that does not ask for the trait % (11)"
LASTS = "Further training steps until undone (20)"
COST = "Work in training, misaligned = 1 (14)"


def conclusions(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each method and setting of `frame`, which is `result_tables.numbers`, formatted for readers."""
    runs = study.runs()
    rates = over_tasks(frame, list(MEASURES))
    columns = {heading: _formatted(rates[name], whole) for name, heading in MEASURES.items()}
    triggers = study.profile.evaluation.triggers
    asking = triggers.asking(study.inputs.stated_trait.inoculation_prompt) if triggers else ()
    columns[HIDES] = _hides(conditions.triggers(study, runs), asking)
    section = study.profile.persistence
    columns[LASTS] = _lasts(persistence.persistence(study, runs), section.margin) if section else {}
    work = costs.training(study)
    columns[COST] = _formatted(over_tasks(work, ["work"])["work"], "{:.2f}".format) if len(work) else {}
    rows = [{"Method": f"{method}{seeds}", "Setting": shown(setting)}
            | {heading: found.get(_key(method, setting), DASH) for heading, found in columns.items()}
            for (method, setting), seeds in zip(rates.index, fewer_seeds(frame), strict=True)]
    return pd.DataFrame(rows, columns=["Method", "Setting", *columns])


def _key(method: str, setting: float) -> tuple[str, float | None]:
    return method, None if pd.isna(setting) else float(setting)  # NaN equals nothing, itself included


def _formatted(values: pd.Series, form: Callable[[float], str]) -> dict[tuple[str, float | None], str]:
    """Format what is known, by method and setting."""
    return {_key(*condition): form(value) for condition, value in values.items() if not pd.isna(value)}


def _hides(triggered: pd.DataFrame, asking: Collection[str] = ()) -> dict[tuple[str, float | None], str]:
    """Format each condition's share without a trigger, and in the context in which it is largest.

    The triggers that ask for the trait (`asking`) are left out: a rise there does not show that a trait is hidden.
    """
    counted = triggered[~triggered["trigger"].isin(asking)] if len(triggered) else triggered
    if counted.empty or counted["trigger"].eq(NO_TRIGGER).all():
        return {}
    return {_key(row["method"], row["setting"]): f"{whole(row[NO_TRIGGER])}, {whole(row['worst'])}{row['seeds']}"
            for row in conditions.worst_means(counted).to_dict("records")
            if not pd.isna(row[NO_TRIGGER]) or not pd.isna(row["worst"])}


def _lasts(along: pd.DataFrame, margin: float) -> dict[tuple[str, float | None], str]:
    """Format after how many further steps an attack undoes each condition: the earliest of its runs and attacks.

    The attack `longer` is left out, because it keeps the defense. So is a condition where plain fine-tuning shows no
    effect, so that there is nothing to undo, where it is not known, or where other conditions have more runs, of which
    the earliest is earlier by chance.
    """
    dropped = along[along["attack"] != "longer"] if len(along) else along
    affected = dropped[persistence.affected(dropped, margin)] if len(dropped) else dropped
    attacked = persistence.undone(affected, margin)
    attacked = attacked[attacked["known"].astype(bool)]
    if attacked.empty:
        return {}
    runs = attacked.drop_duplicates([*CONDITION, "dataset", "seed"]).groupby(CONDITION, dropna=False).size()
    ends = attacked.groupby(CONDITION, dropna=False)[["undone", "steps"]].agg({"undone": "min", "steps": "max"})
    ends = ends[runs == runs.max()]
    return {_key(*condition): f"not after {steps:.0f}" if pd.isna(undone) else f"{undone:.0f}"
            for condition, undone, steps in zip(ends.index, ends["undone"], ends["steps"], strict=True)}
