"""Figures of runs under triggers, along their training, what a monitor read there, and along further training."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emlib.report.figures.labels import RIGHT, Label, place
from emlib.report.figures.looks import darkened, fills_of, lines_of, look_of, marks_of
from emlib.report.figures.plots import key_of_marks, legend, mark, nothing, panels, rows_of_percent
from emlib.report.tables.rows import misaligned_of, named, runs_of, whole

SMALL = 8  # font size in points of the names at the ends of lines
RANGE = "0.88"  # the grey of the bars from a run's smallest to its largest share


def triggers(frame: pd.DataFrame) -> Figure:
    """Plot each run's misaligned share without a trigger and under each one, with 95% intervals.

    `frame` is `conditions.triggers`. A grey bar reaches from the smallest to the largest share: a defense that only
    hides the trait has a long one. There is none where a share is not known, which may be the smallest or the largest.
    """
    if frame.empty:
        return nothing("There are no answers under triggers to draw here.")
    runs = runs_of(frame)
    marks = marks_of(list(frame["trigger"]))
    figure, [axis] = panels(1, (7.6, 0.66 * len(runs)), around=(0, 1.4), grid="x")
    known = frame.dropna(subset=["misaligned"])["trigger"].nunique()  # a context that no run has is in no range
    span: str | None = "smallest to largest share"
    offsets = dict(zip(marks, np.linspace(-0.27, 0.27, len(marks)), strict=True))
    for height, run in enumerate(runs):
        low, high = run["misaligned"].min(), run["misaligned"].max()
        if run["misaligned"].count() == known > 0:
            axis.barh(height, high - low, height=0.76, left=low, color=RANGE, zorder=0, label=span)
            span = None  # it is in the legend once
        for one in run.to_dict("records"):
            mark(axis, one, "misaligned", height + offsets[one["trigger"]], marks[one["trigger"]])
    rows_of_percent(axis, [_label(run, frame) for run in runs])
    axis.set_xlabel("general misaligned, % of the answers asked for (bars: 95% intervals)")
    key_of_marks(axis, {name: f"{name} prompt" if name in set(frame["method"]) else name for name in marks})
    legend(figure, 3, title="context of the question")
    return figure


def trajectory(frame: pd.DataFrame, begins: pd.DataFrame) -> Figure:
    """Plot the misaligned shares of each run over its training steps, with 95% intervals: a panel for each run.

    `frame` is `conditions.trajectory`, and `begins` its `onset`: a dotted line at the step at which EM begins.
    """
    if frame.empty:
        return nothing("No run has answers at earlier steps of its training.")
    runs = runs_of(frame)
    sets = [measure.removesuffix("_misaligned") for measure in misaligned_of(frame)]
    figure, axes = panels(len(runs), (3.6, 2.6), around=(0.6, 0.8), columns=3, sharey=True)
    for axis, run, step in zip(axes, runs, begins["begins"], strict=False):
        colour = look_of(run["method"].iloc[0])[0]
        for name, (marker, filled) in marks_of(sets).items():
            _along(axis, run, f"{name}_misaligned", 0.15, color=colour, marker=marker,
                   fillstyle="full" if filled else "none", linestyle="-" if filled else "--")
        if not pd.isna(step):
            axis.axvline(step, color="black", linestyle=":", linewidth=1, label="EM begins")
        axis.set_title(_label(run, frame), fontsize="medium")
        axis.set(ylim=(-4, 104), xlabel="optimizer step")
    axes[0].set_ylabel("misaligned, % of answers asked for")
    key_of_marks(axes[0], {name: _words(name) for name in sets})
    legend(figure, 4)
    return figure


def _along(axis: Axes, run: pd.DataFrame, measure: str, tint: float, **style: Any) -> None:
    """Plot a measure of one run over its steps, with its 95% interval as a band."""
    axis.plot(run["steps"], run[measure], **style)
    axis.fill_between(run["steps"], run[f"{measure}_low"], run[f"{measure}_high"], color=style["color"], alpha=tint,
                      linewidth=0)


def _words(name: str) -> str:
    """Return the name of a question set, or of its measure, in words."""
    return name.removesuffix("_misaligned").replace("_", " ")


def persistence(frame: pd.DataFrame) -> Figure:
    """Plot each run's misaligned share over the steps of each attack: a row of panels for each data set.

    `frame` is `persistence.persistence`. Solid lines with 95% intervals are of the general questions (or of the first
    set, where these were not asked), dashed ones of the other sets. The dotted line is `misaligned` without further
    training, a mean over seeds; there is none where a seed is not scored. Runs of one method differ in the filling of
    their markers.
    """
    if frame.empty:
        return nothing("No run has answers along an attack.")
    datasets, attacks = (list(dict.fromkeys(frame[column])) for column in ("dataset", "attack"))
    first, *others = misaligned_of(frame)
    figure, axes = panels(len(datasets) * len(attacks), (3.4, 2.8), around=(1.4, 1), columns=len(attacks), sharey=True)
    panel_of = dict(zip(product(datasets, attacks), axes, strict=True))
    names = {_label(run, frame, in_panel=True): str(run["method"].iloc[0]) for run in runs_of(frame)}
    looks = dict(zip(names, fills_of(list(names.values())), strict=True))
    for (dataset, attack), part in frame.groupby(["dataset", "attack"], sort=False):
        axis = panel_of[dataset, attack]
        for run in runs_of(part):
            name = _label(run, frame, in_panel=True)
            colour, marker, filled = looks[name]
            control = " (control)" if names[name] == "untrained" else ""
            _along(axis, run, first, 0.07, color=colour, marker=marker, fillstyle=filled, label=name + control)
            axis.plot(run["steps"], run[others], color=colour, marker=marker, fillstyle=filled, markersize=3,
                      linestyle="--", linewidth=1)
        plain = part.drop_duplicates("seed")["plain"].mean(skipna=False)
        if not pd.isna(plain):
            axis.axhline(plain, color="black", linestyle=":", linewidth=1, label="no defense, no attack")
        axis.set_title(f"attack: {attack}" + (f", {dataset}" if len(datasets) > 1 else ""), fontsize="medium")
        axis.set(ylim=(-4, 104), xlabel="further optimizer steps")
    dashed = f"\n(dashed: {', '.join(map(_words, others))})" if others else ""
    axes[0].set_ylabel(f"misaligned, % of {_words(first)} answers{dashed}")
    legend(figure, 4 if len(axes) > 1 else 2)
    return figure


def drifts(frame: pd.DataFrame) -> Figure:
    """Plot each run's drift over its steps, a panel for each vector; `frame` is `tables.monitor.readings`.

    The name at a line's end has the share of general answers that are misaligned after the last step, if it is known.
    """
    if frame.empty:
        return nothing("No run was trained with a monitor.")
    names = [str(name) for name in frame.columns if str(name).startswith("drift ")]
    figure, axes = panels(max(1, len(names)), (6.4, 4))
    runs = runs_of(frame)
    looks = lines_of([str(run["method"].iloc[0]) for run in runs])
    longest = max(24, *(len(_label(run, frame)) + len(" (100)") for run in runs))
    room = min(0.6, longest / 72)  # the part of an axis for the names
    for axis, name in zip(axes, names, strict=False):
        for run, (colour, line) in zip(runs, looks, strict=True):
            axis.plot(run["step"], run[name], marker=".", color=colour, linestyle=line)
        trait, _, layer = name.removeprefix("drift ").rpartition(" ")
        axis.set(xlabel="optimizer step", xlim=(None, max(1, frame["step"].max()) / (1 - room)),
                 ylabel=f"drift along the {trait} vector,\nlayer {layer} (activation units)")
        axis.set_title("in brackets: general misaligned at the end, %", fontsize="small")
    for axis, name in zip(axes, names, strict=False):
        known = [run.dropna(subset=[name]) for run in runs if run[name].notna().any()]
        ends = [(_label(run, frame), run.iloc[-1]) for run in known]
        shares = ["" if pd.isna(end["misaligned"]) else f" ({whole(end['misaligned'])})" for _, end in ends]
        place(axis, [Label(end["step"], end[name], label + share, darkened(end["method"]))
                     for (label, end), share in zip(ends, shares, strict=True)], SMALL, RIGHT)
    return figure


def _label(run: pd.DataFrame, frame: pd.DataFrame, *, in_panel: bool = False) -> str:
    """Return a run's label: method and setting, and seed and (unless `in_panel`) data set where there are several."""
    one = run.iloc[0]
    dataset = f", {one['dataset']}" if frame["dataset"].nunique() > 1 and not in_panel else ""
    return named(one) + dataset + (f", seed {one['seed']}" if frame["seed"].nunique() > 1 else "")
