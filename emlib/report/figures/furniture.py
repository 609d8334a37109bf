"""What several figures share: panels with light grid lines, rows of percentages, error bars, and one legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray


def panels(count: int, size: tuple[float, float], around: tuple[float, float] = (0, 0), *, columns: int | None = None,
           grid: str = "both", **shared: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels of this size in inches, and with so much `around` them.

    By default they stand in one row. `grid` is the axis whose ticks have lines: "x", "both", or "" for none.
    """
    columns = min(columns or count, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(around[0] + size[0] * columns, around[1] + size[1] * rows),
                                squeeze=False, layout="constrained", **shared)
    for axis in axes.flat[:count]:
        if grid:
            axis.grid(axis=grid, alpha=0.3)
        sns.despine(ax=axis)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def rows_of_percent(axis: Axes, names: Sequence[str]) -> None:
    """Name the rows of a panel of percentages; the first one is at the top."""
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(len(names) - 0.5, -0.5), xlim=(-4, 104))


def spans(frame: pd.DataFrame, measure: str) -> NDArray[np.float64]:
    """Return how far the interval of each row's measure reaches below and above it: (2, rows)."""
    ends = frame[[f"{measure}_low", f"{measure}_high"]].to_numpy(dtype=float)
    return np.abs(ends.T - frame[measure].to_numpy(dtype=float))


def legend(figure: Figure, columns: int, title: str | None = None) -> None:
    """Write one legend for all panels above them."""
    found = {label: handle for axis in figure.axes for handle, label in zip(
        *axis.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=columns, frameon=False,
                      title=title)
