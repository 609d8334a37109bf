"""The figure of what a monitor read while runs trained."""

from __future__ import annotations

import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from emlib.report.figures.furniture import panels
from emlib.report.figures.labels import Label, place
from emlib.report.figures.plots import nothing
from emlib.report.tables.rows import condition, runs_of


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
