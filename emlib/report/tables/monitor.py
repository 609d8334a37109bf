"""Tables of what a monitor read while runs trained, and of how early that tells emergent misalignment (EM)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from emlib.evaluation.statistics import auroc
from emlib.report.tables.rows import IDENTITY, cell, identity_of, p_value, shown
from emlib.study.runs import Run
from emlib.study.study import Study

LOSSES = {"held_out": "held-out loss, decrease", "pool": "loss on the pool, increase"}
FEWEST = 4  # runs that end with EM, and that end without: from fewer little can be told (p is at least 2/70 at four)


def readings(study: Study, runs: Iterable[Run]) -> pd.DataFrame:
    """Return a row for each reading: its step of so many, the drift along each vector, the losses and KL in nats.

    `misaligned` is the share of general answers after the last step, in percent; NaN if the run is not evaluated.
    `seconds` is the duration of the reading, `train_seconds` that of all steps. Runs without readings are left out.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        found, result = study.readings(run), study.result(run)
        end = None if result is None else result.general.misaligned.percent
        total, seconds = len(study.log(run)), sum(step.seconds for step in study.log(run))
        rows += [{**identity_of(run), "step": one.step, "steps": total,
                  **{f"drift {name}": value for name, value in one.drift.items()}, **one.losses, "kl": one.kl,
                  "misaligned": end, "seconds": one.seconds, "train_seconds": seconds} for one in found]
    frame = pd.DataFrame(rows, columns=None if rows else [*IDENTITY, "step", "steps", "misaligned", "seconds",
                                                          "train_seconds"])
    return frame.astype({"misaligned": float})


def at_share(frame: pd.DataFrame, share: float) -> pd.DataFrame:
    """Return each run's last reading up to a share of its steps, after the base model's; runs without one are out."""
    some = frame[(frame["step"] > 0) & (frame["step"] <= share * frame["steps"])]
    return some.groupby(IDENTITY, dropna=False, sort=False).tail(1)


def early_warning(frame: pd.DataFrame, *, share: float = 0.25, misaligned: float = 20.0) -> pd.DataFrame:
    """Return how well each measure, read at a share of the training, tells the runs that end with EM.

    A run ends with EM if at least `misaligned` percent of its general answers are. `auroc` is the probability that the
    measure is larger in a run with EM than in one without, ties counting half; p is of Mann and Whitney's test, which
    takes the runs as independent. Of losses the change since step 0 counts, because the base model's depends on the
    data set: the decrease on held-out rows, which training lowers, and the increase on the pool's. Both are NaN where
    all runs end alike.
    """
    some = at_share(_with_changes(frame.dropna(subset=["misaligned"])), share)
    with_em, without = some[some["misaligned"] >= misaligned], some[some["misaligned"] < misaligned]
    rows = []
    for name in [*(column for column in frame.columns if str(column).startswith("drift ")), "kl", *LOSSES]:
        if name not in some or some[name].isna().all():
            continue
        sign = -1 if name == "held_out" else 1
        one, other = ((sign * side[name].dropna()).tolist() for side in (with_em, without))
        told = auroc(one, other) if one and other else (float("nan"), float("nan"))
        rows.append((LOSSES.get(name, name), *told, len(one), len(other)))
    return pd.DataFrame(rows, columns=["measure", "auroc", "p", "runs with EM", "runs without"])


def _with_changes(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the readings with each loss less that of the same run's step 0; NaN for a run without it."""
    losses = [name for name in LOSSES if name in frame]
    if not losses:
        return frame
    before = frame[losses].astype(float).where(frame["step"] == 0)
    base = before.groupby([frame[name] for name in IDENTITY], dropna=False).transform("first")
    return frame.assign(**{name: frame[name] - base[name] for name in losses})


def readable_warning(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `early_warning` for readers; without the measures that have fewer than `FEWEST` runs on either side."""
    frame = frame[frame[["runs with EM", "runs without"]].min(axis=1) >= FEWEST]
    return frame.assign(auroc=[cell(value, digits=2) for value in frame["auroc"]],
                        p=[p_value(value) for value in frame["p"]]).rename(columns={"auroc": "AUROC"})


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Format each run's last reading for readers, with the share of the training time that reading took."""
    last = frame.groupby(IDENTITY, dropna=False, sort=False).tail(1)
    took = frame.groupby(IDENTITY, dropna=False, sort=False)["seconds"].sum().to_numpy()
    people = last.drop(columns=["seconds", "train_seconds", "steps"]).assign(setting=last["setting"].map(shown))
    people["time of the readings, %"] = 100 * took / last["train_seconds"]
    return people.round(2).reset_index(drop=True)


def saved(study: Study, runs: Iterable[Run]) -> pd.DataFrame:
    """Return how many of their planned steps runs took, with their misaligned shares in percent; trained runs only."""
    rows = []
    for run in runs:
        adapter, result = study.adapter(run), study.result(run)
        if adapter is None or adapter.facts.get("planned_steps") is None:
            continue
        taken, planned = adapter.facts["steps"], adapter.facts["planned_steps"]
        ends = (None, None) if result is None else (result.general.misaligned.percent,
                                                    result.in_domain.misaligned.percent)
        rows.append((str(run), taken, planned, 100 * (1 - taken / planned), *ends))
    return pd.DataFrame(rows, columns=["run", "steps", "planned", "saved, %", "general misaligned, %",
                                       "in-domain misaligned, %"])
