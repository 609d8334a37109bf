"""The figure of notebook 21: the rate after training against the projection difference of the data before it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emlib.evaluation.prediction import line
from emlib.report.figures.furniture import legend, panels, spans
from emlib.report.figures.labels import Label, place
from emlib.report.figures.plots import PALETTE
from emlib.report.tables.rows import condition


def rate_against_difference(frame: pd.DataFrame) -> Figure:
    """Plot each run's general rate over the mean projection difference of its training rows, and the line through them.

    `frame` is `tables.audit.table`. Bars are 95% intervals, over rows and over questions. Hollow marks are what the
    line through the other runs predicts.
    """
    shown = frame.dropna(subset=["difference", "misaligned"])
    figure, [axis] = panels(1, (5.8, 4.2), around=(0, 0.6))
    bars = [np.nan_to_num(spans(shown, name)) for name in ("difference", "misaligned")]
    axis.errorbar(shown["difference"], shown["misaligned"], xerr=bars[0], yerr=bars[1], fmt="o", color=PALETTE[0],
                  capsize=2, elinewidth=0.8, label="measured after training")
    axis.plot(shown["difference"], shown["predicted"], "D", color=PALETTE[1], markerfacecolor="none", markersize=5,
              label="predicted from the other runs")
    fitted = line(shown["difference"].tolist(), shown["misaligned"].tolist())
    if fitted is not None:
        x = np.linspace(shown["difference"].min(), shown["difference"].max(), 50)
        axis.plot(x, [fitted.at(one) for one in x], color="0.5", linestyle="--", linewidth=1,
                  label="line through all runs, cut at 0 and 100%")
    axis.set(xlabel="mean projection difference of the training rows", ylim=(-4, 104),
             ylabel="general misaligned, %")
    legend(figure, 1)
    several = shown["dataset"].nunique() > 1
    place(axis, [Label(row["difference"], row["misaligned"],
                       condition(row) + (f", {row['dataset']}" if several else ""))
                 for row in shown.to_dict("records")], 8)
    return figure
