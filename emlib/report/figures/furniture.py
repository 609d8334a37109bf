"""What several figures share: a grid of panels, the lengths of error bars, and one legend for all panels."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

COLUMNS = 3  # of panels, at most


def panels(count: int, size: tuple[float, float], around: tuple[float, float], **shared: Any) -> tuple[
        Figure, list[Axes]]:
    """Return a figure with `count` panels of this size in inches, and with so much `around` them."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(around[0] + size[0] * columns, around[1] + size[1] * rows),
                                squeeze=False, layout="constrained", **shared)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def spans(frame: pd.DataFrame, measure: str) -> NDArray[np.float64]:
    """Return how far the interval of each row's measure reaches below and above it: (2, rows)."""
    ends = frame[[f"{measure}_low", f"{measure}_high"]].to_numpy(dtype=float)
    return np.abs(ends.T - frame[measure].to_numpy(dtype=float))


def legend(figure: Figure, columns: int) -> None:
    """Write one legend for all panels above them."""
    found = {label: handle for axis in figure.axes for handle, label in zip(
        *axis.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=columns, frameon=False)
