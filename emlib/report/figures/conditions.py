"""Figures of runs under triggers, along their training, and along further training."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emlib.config import NO_TRIGGER
from emlib.report.figures.furniture import legend, panels, rows_of_percent, spans
from emlib.report.figures.plots import PALETTE, nothing
from emlib.report.tables.rows import condition, runs_of

MARKERS = "sD^vPX<>"


def triggers(frame: pd.DataFrame) -> Figure:
    """Plot each run's misaligned share without a trigger and under each one, with 95% intervals.

    `frame` is `conditions.triggers`. A grey bar reaches from the smallest to the largest share: a defense that only
    hides the trait has a long one.
    """
    if frame.empty:
        return nothing("No run has answers under a trigger.")
    runs = runs_of(frame)
    names = list(dict.fromkeys(frame["trigger"]))
    styles = dict(zip(names, zip(cycle(PALETTE), ["o", *MARKERS * len(names)], strict=False), strict=False))
    figure, [axis] = panels(1, (7.2, 0.62 * len(runs)), around=(0, 1.3), grid="x")
    offsets = dict(zip(names, np.linspace(-0.26, 0.26, len(names)), strict=True))
    for height, run in enumerate(runs):
        axis.barh(height, run["misaligned"].max() - run["misaligned"].min(), height=0.7, left=run["misaligned"].min(),
                  color="0.92", zorder=0, label="smallest to largest" if height == 0 else None)
        for one, ends in zip(run.to_dict("records"), spans(run, "misaligned").T, strict=True):
            colour, marker = styles[one["trigger"]]
            axis.errorbar(one["misaligned"], height + offsets[one["trigger"]], xerr=ends[:, None], fmt=marker,
                          color=colour, capsize=2,
                          markerfacecolor="white" if one["trigger"] == NO_TRIGGER else colour,
                          label=one["trigger"] if height == 0 else None)
    rows_of_percent(axis, [_label(run, frame) for run in runs])
    axis.set_xlabel("general misaligned, % of the answers asked for (bars: 95% intervals)")
    legend(figure, 5, title="context of the question")
    return figure


def trajectory(frame: pd.DataFrame, begins: pd.DataFrame) -> Figure:
    """Plot the misaligned shares of each run over its training steps, with 95% intervals: a panel for each run.

    `frame` is `conditions.trajectory`, and `begins` its `onset`: a dotted line at the step at which EM begins.
    """
    if frame.empty:
        return nothing("No run has answers at earlier steps of its training.")
    runs = runs_of(frame)
    measures = [str(name) for name in frame.columns if str(name).endswith("_misaligned")]
    figure, axes = panels(len(runs), (3.4, 2.6), around=(1, 0.8), columns=3, sharey=True)
    for axis, run, step in zip(axes, runs, begins["begins"], strict=False):
        for measure, colour, marker in zip(measures, cycle(PALETTE), cycle("os" + MARKERS), strict=False):
            axis.plot(run["steps"], run[measure], color=colour, marker=marker,
                      label=measure.removesuffix("_misaligned").replace("_", " "))
            axis.fill_between(run["steps"], run[f"{measure}_low"], run[f"{measure}_high"], color=colour, alpha=0.15)
        if not pd.isna(step):
            axis.axvline(step, color="black", linestyle=":", linewidth=1, label="EM begins")
        axis.set_title(_label(run, frame), fontsize="medium")
        axis.set(ylim=(-4, 104), xlabel="optimizer step")
    axes[0].set_ylabel("misaligned, % of answers asked for")
    legend(figure, 4)
    return figure


def persistence(frame: pd.DataFrame) -> Figure:
    """Plot each run's misaligned share over the steps of each attack: a row of panels for each data set.

    `frame` is `persistence.persistence`. Solid lines with 95% intervals are of the first question set, dashed ones of
    the others. The dotted line is `misaligned` without further training, a mean over seeds.
    """
    if frame.empty:
        return nothing("No run has answers along an attack.")
    datasets, attacks = (list(dict.fromkeys(frame[column])) for column in ("dataset", "attack"))
    first, *others = (str(name) for name in frame.columns if str(name).endswith("_misaligned"))
    figure, axes = panels(len(datasets) * len(attacks), (3.4, 2.8), around=(1.4, 1), columns=len(attacks), sharey=True)
    panel_of = dict(zip(product(datasets, attacks), axes, strict=True))
    looks = zip(cycle(PALETTE), cycle("o" + MARKERS), strict=False)
    styles: dict[str, tuple[Any, str]] = {}
    for (dataset, attack), part in frame.groupby(["dataset", "attack"], sort=False):
        axis = panel_of[dataset, attack]
        for run in runs_of(part):
            name = _label(run, frame, in_panel=True)
            if name not in styles:
                styles[name] = next(looks)
            colour, marker = styles[name]
            control = " (control)" if run["method"].iloc[0] == "untrained" else ""
            axis.plot(run["steps"], run[first], color=colour, marker=marker, label=name + control)
            axis.fill_between(run["steps"], run[f"{first}_low"], run[f"{first}_high"], color=colour, alpha=0.07)
            axis.plot(run["steps"], run[others], color=colour, linestyle="--", linewidth=1)
        axis.axhline(part.drop_duplicates("seed")["plain"].mean(), color="black", linestyle=":", linewidth=1,
                     label="no defense, no attack")
        axis.set_title(f"attack: {attack}" + (f", {dataset}" if len(datasets) > 1 else ""), fontsize="medium")
        axis.set(ylim=(-4, 104), xlabel="further optimizer steps")
    first, *others = (name.removesuffix("_misaligned").replace("_", " ") for name in (first, *others))
    dashed = f"\n(dashed: {', '.join(others)})" if others else ""
    axes[0].set_ylabel(f"misaligned, % of {first} answers{dashed}")
    legend(figure, 4 if len(axes) > 1 else 2)
    return figure


def _label(run: pd.DataFrame, frame: pd.DataFrame, *, in_panel: bool = False) -> str:
    """Return a run's label: method and setting, and seed and (unless `in_panel`) data set where there are several."""
    one = run.iloc[0]
    dataset = f", {one['dataset']}" if frame["dataset"].nunique() > 1 and not in_panel else ""
    return condition(one) + dataset + (f", seed {one['seed']}" if frame["seed"].nunique() > 1 else "")
