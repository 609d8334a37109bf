"""Figures of runs under triggers, along their training, what a monitor read there, and along further training."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from emlib.config import NO_TRIGGER
from emlib.report.figures.labels import Label, place
from emlib.report.figures.plots import PALETTE, legend, nothing, panels, rows_of_percent, spans
from emlib.report.tables.rows import condition, misaligned_of, runs_of

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
    figure, axes = panels(len(runs), (3.4, 2.6), around=(1, 0.8), columns=3, sharey=True)
    for axis, run, step in zip(axes, runs, begins["begins"], strict=False):
        for measure, colour, marker in zip(misaligned_of(frame), cycle(PALETTE), cycle("os" + MARKERS), strict=False):
            _along(axis, run, measure, _words(measure), colour, marker, 0.15)
        if not pd.isna(step):
            axis.axvline(step, color="black", linestyle=":", linewidth=1, label="EM begins")
        axis.set_title(_label(run, frame), fontsize="medium")
        axis.set(ylim=(-4, 104), xlabel="optimizer step")
    axes[0].set_ylabel("misaligned, % of answers asked for")
    legend(figure, 4)
    return figure


def _along(axis: Axes, run: pd.DataFrame, measure: str, label: str, colour: Any, marker: str, tint: float) -> None:
    """Plot a measure of one run over its steps, with its 95% interval as a band."""
    axis.plot(run["steps"], run[measure], color=colour, marker=marker, label=label)
    axis.fill_between(run["steps"], run[f"{measure}_low"], run[f"{measure}_high"], color=colour, alpha=tint)


def _words(measure: str) -> str:
    """Return the question set of a measure, in words."""
    return measure.removesuffix("_misaligned").replace("_", " ")


def persistence(frame: pd.DataFrame) -> Figure:
    """Plot each run's misaligned share over the steps of each attack: a row of panels for each data set.

    `frame` is `persistence.persistence`. Solid lines with 95% intervals are of the first question set, dashed ones of
    the others. The dotted line is `misaligned` without further training, a mean over seeds.
    """
    if frame.empty:
        return nothing("No run has answers along an attack.")
    datasets, attacks = (list(dict.fromkeys(frame[column])) for column in ("dataset", "attack"))
    first, *others = misaligned_of(frame)
    figure, axes = panels(len(datasets) * len(attacks), (3.4, 2.8), around=(1.4, 1), columns=len(attacks), sharey=True)
    panel_of = dict(zip(product(datasets, attacks), axes, strict=True))
    names = dict.fromkeys(_label(run, frame, in_panel=True) for run in runs_of(frame))
    styles = dict(zip(names, zip(cycle(PALETTE), cycle("o" + MARKERS), strict=False), strict=False))
    for (dataset, attack), part in frame.groupby(["dataset", "attack"], sort=False):
        axis = panel_of[dataset, attack]
        for run in runs_of(part):
            name = _label(run, frame, in_panel=True)
            control = " (control)" if run["method"].iloc[0] == "untrained" else ""
            _along(axis, run, first, name + control, *styles[name], 0.07)
            axis.plot(run["steps"], run[others], color=styles[name][0], linestyle="--", linewidth=1)
        axis.axhline(part.drop_duplicates("seed")["plain"].mean(), color="black", linestyle=":", linewidth=1,
                     label="no defense, no attack")
        axis.set_title(f"attack: {attack}" + (f", {dataset}" if len(datasets) > 1 else ""), fontsize="medium")
        axis.set(ylim=(-4, 104), xlabel="further optimizer steps")
    dashed = f"\n(dashed: {', '.join(map(_words, others))})" if others else ""
    axes[0].set_ylabel(f"misaligned, % of {_words(first)} answers{dashed}")
    legend(figure, 4 if len(axes) > 1 else 2)
    return figure


def drifts(frame: pd.DataFrame) -> Figure:
    """Plot each run's drift over its steps, a panel for each vector; `frame` is `tables.monitor.readings`.

    The colour is the share of general answers that are misaligned after the last step, dark where it is large; grey
    where it is not known.
    """
    if frame.empty:
        return nothing("No run was trained with a monitor.")
    names = [str(name) for name in frame.columns if str(name).startswith("drift ")]
    figure, axes = panels(max(1, len(names)), (4.2, 3), around=(1.6, 0))
    colours = ScalarMappable(Normalize(0, 100), "flare")
    for axis, name in zip(axes, names, strict=False):
        for run in runs_of(frame):
            end = run["misaligned"].iloc[-1]
            axis.plot(run["step"], run[name], marker=".", color="0.7" if pd.isna(end) else colours.to_rgba(end))
        trait, _, layer = name.removeprefix("drift ").rpartition(" ")
        axis.set(xlabel="optimizer step", ylabel=f"drift along {trait}, layer {layer}",
                 xlim=(None, 1.35 * max(1, frame["step"].max())))  # room for the names
    figure.colorbar(colours, ax=axes, label="general misaligned at the end, %")
    for axis, name in zip(axes, names, strict=False):
        ends = [run.dropna(subset=[name]).iloc[-1] for run in runs_of(frame) if run[name].notna().any()]
        place(axis, [Label(run["step"], run[name], condition(run)) for run in ends], 7)
    return figure


def _label(run: pd.DataFrame, frame: pd.DataFrame, *, in_panel: bool = False) -> str:
    """Return a run's label: method and setting, and seed and (unless `in_panel`) data set where there are several."""
    one = run.iloc[0]
    dataset = f", {one['dataset']}" if frame["dataset"].nunique() > 1 and not in_panel else ""
    return condition(one) + dataset + (f", seed {one['seed']}" if frame["seed"].nunique() > 1 else "")
