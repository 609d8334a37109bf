"""Tables of what is left of a defense when its adapter is trained further (the section `persistence` of a profile)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from emlib.config import MISALIGNED, UNTRAINED
from emlib.evaluation.paired import Difference
from emlib.report.tables.conditions import (
    GENERAL,
    compared,
    readable_shares,
    shares,
    shares_of_sets,
    with_differences,
)
from emlib.report.tables.rows import DASH, IDENTITY, cell, identity_of, misaligned_of, readable_identity
from emlib.study.runs import Run
from emlib.study.study import Study

UNDONE = {"undone": "Undone at step", "earliest": "Possibly at step", "latest": "For certain at step"}


def persistence(study: Study, runs: Iterable[Run]) -> pd.DataFrame:
    """Return a row for each run, attack and kept step of the attack, from 0 (the run itself) to its end, in percent.

    Each question set has its columns. `plain` is the misaligned share of general questions under plain fine-tuning
    (`misaligned`) of the same data set and seed, without further training, and `untrained` that of the untrained model.
    `difference` is that of general questions to `plain`, in percentage points, on the same questions. The three are NaN
    without general answers. Runs without these verdicts are left out.
    """
    found: list[tuple[dict[str, Any], Difference | None]] = []
    for run in runs:
        reference, before = run.baseline(MISALIGNED), run.baseline(UNTRAINED)
        for attack, points in (study.attacked(run) or {}).items():
            asked = GENERAL in points[0].verdicts
            plain, bare = (study.verdicts(one, GENERAL) if asked else None for one in (reference, before))
            beside = {name: shares(study, verdicts)["misaligned"] if verdicts else float("nan")
                      for name, verdicts in (("untrained", bare), ("plain", plain))}
            for point in points:
                row = identity_of(run) | {"attack": attack, "steps": point.steps}
                row |= shares_of_sets(study, point.verdicts)
                itself = run == reference and point.share == 0
                gap = compared(study, point.verdicts[GENERAL], plain) if plain and not itself else None
                found.append((row | beside, gap))
    return with_differences(found, [*IDENTITY, "attack", "steps", "untrained", "plain"])


def undone(frame: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Return after how many further steps each attack undoes each defense; `frame` is `persistence`.

    A defense is undone at the first kept step at which its misaligned share is at most `margin` percentage points below
    that of plain fine-tuning. `earliest` is the first one at which the upper end of the difference's 95% interval is,
    so that it may be undone; `latest` the first one at which even the lower end is. NaN: at no kept step, or there is
    nothing to undo (not `affected`), or it is not known (not `known`: the share of plain fine-tuning or of a step is
    NaN).
    `_before` and `_after` are shares at step 0 and at the end. Plain fine-tuning has no row; `untrained`, if attacked,
    has one.
    """
    ends = {"undone": "difference", "earliest": "difference_high", "latest": "difference_low"}
    rows = []
    for found, along in frame[frame["method"] != MISALIGNED].groupby([*IDENTITY, "attack"], dropna=False, sort=False):
        along = along.sort_values("steps")
        row = dict(zip([*IDENTITY, "attack"], found, strict=True)) | {
            "plain": along["plain"].iloc[0], "known": bool(along["difference"].notna().all()),
            "affected": bool(affected(along, margin).all()), "steps": along["steps"].iloc[-1]}
        for measure in misaligned_of(frame):
            row |= {f"{measure}_before": along[measure].iloc[0], f"{measure}_after": along[measure].iloc[-1]}
        some = along if row["affected"] and row["known"] else along.head(0)
        rows.append(row | {name: some.loc[some[end] >= -margin, "steps"].min() for name, end in ends.items()})
    columns = [*IDENTITY, "attack", "plain", "known", "affected", "steps", *ends]
    return pd.DataFrame(rows, columns=None if rows else columns)


def affected(frame: pd.DataFrame, margin: float) -> pd.Series:
    """Return of which rows plain fine-tuning has an effect to undo: more than `margin` points over the untrained model.

    Where the untrained model's share is not known, it may have one.
    """
    return frame["plain"].notna() & ~(frame["plain"] - frame["untrained"] <= margin)


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `persistence` for readers: shares with their intervals."""
    people = []
    for row in frame.to_dict("records"):
        low, high = row["difference_low"], row["difference_high"]
        gap = DASH if pd.isna(row["difference"]) else f"{row['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        people.append(readable_identity(row) | {"Attack": row["attack"], "Further steps": row["steps"]}
                      | readable_shares(row) | {"Difference from no defense": gap})
    return pd.DataFrame(people)


def readable_undone(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `undone` for readers: the step at which a defense is undone, and the ends of what its interval allows.

    Without plain fine-tuning of the same seed, or without a score of one of the steps, they are "not known". Where
    plain fine-tuning has no effect, there is "nothing to undo"; "never" is at no kept step.
    """
    people = []
    for row in frame.to_dict("records"):
        measures = [str(name).removesuffix("_before") for name in row if str(name).endswith("_before")]
        changes = {f"{name.replace('_', ' ').capitalize()} %": f"{row[f'{name}_before']:.1f} to "
                   f"{row[f'{name}_after']:.1f}" for name in measures}
        without = "not known" if not row["known"] else "never" if row["affected"] else "nothing to undo"
        ends = {heading: without if pd.isna(row[name]) else cell(row[name], digits=0)
                for name, heading in UNDONE.items()}
        people.append(readable_identity(row) | {"Attack": row["attack"]} | changes | {
            "No defense %": cell(row["plain"]), "Steps": row["steps"]} | ends)
    return pd.DataFrame(people)
