"""The figure of what a monitor read while runs trained."""

from __future__ import annotations

import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from emlib.report.figures.furniture import panels
from emlib.report.figures.plots import nothing
from emlib.report.tables.rows import runs_of


def drifts(frame: pd.DataFrame) -> Figure:
    """Plot each run's drift over its steps, a panel for each vector; `frame` is `tables.monitor.readings`.

    The colour is the share of general answers that are misaligned after the last step; grey where it is not known.
    """
    if frame.empty:
        return nothing("No run was trained with a monitor.")
    names = [str(name) for name in frame.columns if str(name).startswith("drift ")]
    figure, axes = panels(max(1, len(names)), (4.2, 3), around=(1.6, 0))
    colours = ScalarMappable(Normalize(0, 100), "viridis_r")
    for axis, name in zip(axes, names, strict=False):
        for run in runs_of(frame):
            end = run["misaligned"].iloc[-1]
            axis.plot(run["step"], run[name], marker=".", color="0.7" if pd.isna(end) else colours.to_rgba(end))
        axis.set(xlabel="optimizer step", ylabel=name)
    figure.colorbar(colours, ax=axes, label="misaligned at the end, %")
    return figure
