"""A figure of standard benchmarks: what defenses cost in capability, against emergent misalignment."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emlib.report.figures.defenses import look
from emlib.report.figures.furniture import legend, panels, spans
from emlib.report.tables.panel import heading
from emlib.report.tables.rows import IDENTITY

NORMAL = 1.96  # standard errors on each side of a 95% interval


def against_misalignment(panel: pd.DataFrame, rates: pd.DataFrame) -> Figure:
    """Plot each run's result on a benchmark against its general misalignment, with 95% intervals: a panel each.

    `panel` is `tables.panel.numbers`, of which the main metrics are drawn, and `rates` is `result_tables.numbers`. Runs
    without both have no point. The best place is the upper left: capable, and not misaligned.
    """
    shown = panel[panel["headline"].astype(bool)].merge(
        rates.astype({"setting": float}), on=IDENTITY, how="inner")
    shown = shown[shown["general_misaligned"].notna()]
    tasks = shown.assign(of=[heading(row) for row in shown.to_dict("records")])
    names = list(dict.fromkeys(tasks["of"])) or ["no run has both"]
    figure, axes = panels(len(names), (3.6, 3.2), around=(1, 0.8), columns=3, sharex=True)
    for axis, name in zip(axes, names, strict=True):
        _panel(axis, tasks[tasks["of"] == name])
        axis.set_title(name, fontsize="medium")
    figure.supxlabel("general questions: misaligned, % (bars: 95% intervals)", fontsize="medium")
    legend(figure, 4)
    return figure


def _panel(axis: Axes, runs: pd.DataFrame) -> None:
    for name, of in runs.groupby("method", sort=False):
        colour, marker = look(str(name))
        axis.errorbar(of["general_misaligned"], of["value"].to_numpy(float), xerr=spans(of, "general_misaligned"),
                      yerr=NORMAL * of["stderr"].fillna(0).to_numpy(float), fmt=marker, color=colour, capsize=2,
                      linestyle="none", label=str(name))
    axis.set_xlim(-5, 105)
