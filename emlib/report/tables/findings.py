"""One sentence per notebook that states what it found, computed from its tables.

A notebook prints its sentence; `make reproduce` shows it beside the notebook's name when the notebook ends. Shares are
means over seeds and data sets, in percent; conditions that lack a data set have none, and those with fewer seeds than
others say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from emlib.core.progress import found
from emlib.report.tables.averages import fewer_seeds, over_tasks
from emlib.report.tables.rows import SHOWN_ABOVE, TRAIT, cell, condition, whole

MOST = 8  # conditions in one sentence


def defenses(frame: pd.DataFrame) -> None:
    """State each condition's general and in-domain misalignment; `frame` is `result_tables.numbers`."""
    scored = frame.dropna(subset=["general_misaligned"])
    _state("misaligned, general / in-domain", scored, ["general_misaligned", "in_domain_misaligned"], " / ")


def data(remarks: Mapping[str, Sequence[str]]) -> None:
    """State what to know of data sets; `remarks` are those of `Inputs.remarks`, by data set."""
    said = [f"{name}: {remark}" for name, some in remarks.items() for remark in some]
    if said:
        found("; ".join(said))


def benign(frame: pd.DataFrame) -> None:
    """State each condition's exact matches, averaged over benign tasks; `frame` is `report.benign.numbers`."""
    _state("exact match", frame, ["exact_match"], tasks=["task", "tier"])


def grpo(frame: pd.DataFrame) -> None:
    """State each condition's held-out accuracy; `frame` is `report.grpo.numbers`."""
    _state("held-out accuracy", frame.assign(dataset="problems"), ["eval_accuracy"])


def audit(frame: pd.DataFrame) -> None:
    """State how far the audit of training rows misses the rates that followed; `frame` is `audit.table`."""
    known = frame.dropna(subset=["error"])
    if len(known):
        found(f"the rates of {len(known)} runs, predicted from their training rows: off by "
              f"{whole(known['error'].mean())} points on average; predicted as the mean of the other runs: by "
              f"{whole(known['error_of_mean'].mean())}")


def recommendation(reason: str) -> None:
    """State what is recommended for one's own data, or why nothing is; `reason` is that of a `Recommendation`."""
    found(reason.replace("`", ""))


def vector(steered: pd.DataFrame) -> None:
    """State where steering elicits the trait most while at most a fifth is incoherent; `steered` is `steered_rates`.

    Without a judge of coherence every strength counts.
    """
    incoherent = steered["incoherent %"].astype(float)
    coherent = steered[incoherent.isna() | (incoherent <= 20)].dropna(subset=[TRAIT])
    if coherent.empty:
        return
    best = coherent.loc[coherent[TRAIT].astype(float).idxmax()]
    found(f"steering the untrained model at layer {best['layer']:g} with strength {best['strength']:g} gives "
          f"{whole(best[TRAIT])}% of the answers the trait (a score above {SHOWN_ABOVE:g})")


def _state(what: str, frame: pd.DataFrame, measures: list[str], between: str = "", *,
           tasks: Sequence[str] = ("dataset",)) -> None:
    """Print what is measured, and the means of each method and setting; those that lack a data set are only counted."""
    if frame.empty:
        return
    means = over_tasks(frame, measures, tasks=tasks).assign(seeds=fewer_seeds(frame, tasks=tasks))
    whole = means.dropna(subset=measures[:1]).reset_index()
    parts = [f"{condition(row)}{row['seeds']} {between.join(cell(row[name], digits=0) for name in measures)}"
             for row in whole.to_dict("records")]
    more = f", and {len(parts) - MOST} more" if len(parts) > MOST else ""
    lacking = len(means) - len(whole)
    partly = f"; {lacking} without results on every data set" if lacking else ""
    found(f"{what} %: {', '.join(parts[:MOST])}{more}{partly}")
