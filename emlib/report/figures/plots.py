"""What all figures share (panels, colours, bars, legends, files), and the figures that several notebooks show.

Figures are colour-blind safe, with distinct markers, and the same bytes for the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlib.core.files import whole_file
from emlib.report.figures.looks import NEUTRAL, lines_of, look_of, marks_of
from emlib.report.tables.rows import Row, method_named, named
from emlib.report.tables.show import reason
from emlib.study import stamps
from emlib.study.runs import Run
from emlib.training.records import StepRecord

PALETTE = matplotlib.color_sequences["petroff10"]  # told apart with colour vision deficiencies as well (Petroff 2021)
MARGIN = 0.08  # inches on each side of a figure
FORMS = ("png", "pdf")  # of a figure
SMOOTHED = 5  # steps over which the losses of many runs are averaged
PLACES = {"general": "general questions", "in_domain": "in-domain questions"}


def panels(count: int, size: tuple[float, float], around: tuple[float, float] = (0, 0), *, columns: int | None = None,
           grid: str = "both", **shared: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels of this size in inches, and with so much `around` them.

    By default they stand in one row. `grid` is the axis whose ticks have lines: "x", "both", or "" for none.
    """
    columns = min(columns or count, count)
    rows = ceil(count / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(around[0] + size[0] * columns, around[1] + size[1] * rows),
                                squeeze=False, **shared)
    figure.set_layout_engine("constrained", w_pad=MARGIN, h_pad=MARGIN / 2)
    for axis in axes.flat[:count]:
        if grid:
            axis.grid(axis=grid, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def titled(axes: Sequence[Axes], names: Sequence[str]) -> None:
    """Write each panel's name above it; a single panel needs none."""
    for axis, name in zip(axes, names if len(names) > 1 else (), strict=False):
        axis.set_title(name, fontsize="medium")


def shared_xlabel(figure: Figure, axes: Sequence[Axes], text: str) -> None:
    """Write the label of the horizontal axis once for a row of panels."""
    if len(axes) > 1:
        figure.supxlabel(text, fontsize="medium")
    else:
        axes[0].set_xlabel(text)


def rows_of_percent(axis: Axes, names: Sequence[str]) -> None:
    """Name the rows of a panel of percentages; the first one is at the top."""
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(len(names) - 0.5, -0.5), xlim=(-4, 104))


def spans(frame: pd.DataFrame, measure: str) -> NDArray[np.float64]:
    """Return how far the interval of each row's measure reaches below and above it: (2, rows)."""
    ends = frame[[f"{measure}_low", f"{measure}_high"]].to_numpy(dtype=float)
    return np.abs(ends.T - frame[measure].to_numpy(dtype=float))


def legend(figure: Figure, columns: int, title: str | None = None) -> None:
    """Write one legend for all panels above them, in fewer columns where so many are wider than the figure."""
    found = {label: handle for axis in figure.axes for handle, label in zip(
        *axis.get_legend_handles_labels(), strict=True)}
    for fewer in range(columns if found else 0, 0, -1):
        written = figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=fewer, frameon=False,
                                title=title)
        if fewer == 1 or written.get_window_extent().width <= figure.bbox.width - 2 * MARGIN * figure.dpi:
            break
        written.remove()


def nothing(reason: str) -> Figure:
    """Return a figure that only says why there is nothing to plot."""
    figure = plt.figure(figsize=(6, 0.5))
    figure.text(0, 0.5, reason, va="center", style="italic")
    return figure


def styles() -> list[dict[str, Any]]:
    """Return colours with line styles, so that lines differ in greyscale too."""
    dashes = ["-", "--", "-.", ":"]
    return [{"color": colour, "linestyle": dashes[i % len(dashes)], "linewidth": 1.8}
            for i, colour in enumerate(PALETTE)]


def show(figure: Figure, folder: Path | None = None, name: str = "") -> None:
    """Show a figure in a notebook, and save it as `<name>.png` and `<name>.pdf` if a folder is given.

    Of one with a text alone (`nothing`) the text is shown: Jupyter would write "<Figure with 0 Axes>".
    """
    from IPython.display import display  # not needed to read or to save

    if folder is not None:
        save(figure, folder, name)
    display(figure if figure.axes or not figure.texts else reason(figure.texts[0].get_text()))
    plt.close(figure)


def save(figure: Figure, folder: Path, name: str, endings: Sequence[str] = FORMS) -> list[Path]:
    """Write `<name>.png` and `<name>.pdf`, without dates, so that equal numbers give equal bytes.

    The PNG has the stamp of the study that it is of. Of a figure without panels (`nothing`) the files are removed.
    """
    if not figure.axes:
        for ending in FORMS:
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
        return []
    metadata = {"png": {"Software": None, "Comment": stamps.of_drawn(folder) or None},
                "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    paths = []
    for ending in endings:
        path = folder / f"{name}.{ending}"
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=200, metadata=metadata[ending])
        paths.append(path)
    return paths


def key_of_marks(axis: Axes, names: Mapping[str, str]) -> None:
    """Add the mark of each question set or context (`looks.marks_of`) to the legend, in no method's colour."""
    for (marker, filled), name in zip(marks_of(list(names)).values(), names.values(), strict=True):
        axis.plot([], [], marker, color=NEUTRAL, markerfacecolor=NEUTRAL if filled else "white", label=name)


def mark(axis: Axes, row: Row, measure: str, height: float, look: tuple[str, bool]) -> None:
    """Plot a measure of a row with its interval at this height, in the colour of the row's method."""
    (marker, filled), colour = look, look_of(row["method"])[0]
    bars = spans(pd.DataFrame([row]), measure)
    axis.errorbar(row[measure], height, xerr=bars, marker=marker, color=colour, capsize=2,
                  markerfacecolor=colour if filled else "white")


def rates_by_method(frame: pd.DataFrame) -> Figure:
    """Plot each run's general and in-domain misalignment with 95% intervals: one panel per data set.

    `frame` is `result_tables.numbers`. Runs without verdicts are named in the panel and have no marker.
    """
    datasets = list(dict.fromkeys(frame["dataset"]))
    rows = max(len(frame[frame["dataset"] == dataset]) for dataset in datasets)
    figure, axes = panels(len(datasets), (3.8, 0.42 * rows), around=(1.9, 1.2), grid="x", sharex=True)
    marks = marks_of(list(PLACES))
    for axis, dataset in zip(axes, datasets, strict=True):
        runs = frame[frame["dataset"] == dataset]
        several = runs["seed"].nunique() > 1
        for height, row in enumerate(runs.to_dict("records")):
            for offset, place in zip((-0.13, 0.13), PLACES, strict=True):
                mark(axis, row, f"{place}_misaligned", height + offset, marks[place])
        rows_of_percent(axis, [named(row) + (f", seed {row['seed']}" if several else "")
                               for row in runs.to_dict("records")])
    key_of_marks(axes[0], PLACES)
    titled(axes, datasets)
    shared_xlabel(figure, axes, "misaligned, % of the answers asked for\n(best: general left, in-domain right)")
    legend(figure, len(PLACES))
    return figure


def two_judges(points: pd.DataFrame) -> Figure:
    """Plot each answer's alignment and coherence under two judges; dotted lines are the thresholds of the labels.

    `points` is `auxiliary_measures.points`. The panels' titles count answers that a judge could not score. Without a
    judge of coherence there is no panel for it.
    """
    if points.empty:
        return nothing("No second judge has scored answers.")
    measured = points[["coherence, first", "coherence, second"]].notna().any().all()
    borders = {"alignment": 30, **({"coherence": 50} if measured else {})}
    figure, axes = panels(len(borders), (4.3, 4.2), grid="")
    for axis, (score, border) in zip(axes, borders.items(), strict=True):
        columns = [f"{score}, first", f"{score}, second"]
        shown = points.dropna(subset=columns)
        for method, of in shown.groupby("run", sort=False):
            colour, marker, _ = look_of(str(method))
            axis.scatter(of[columns[0]], of[columns[1]], color=colour, marker=marker, alpha=0.6,
                         label=method_named(str(method)))
        for line in (axis.axvline, axis.axhline):
            line(border, color="black", linestyle=":", linewidth=0.8)
        axis.set(xlim=(-4, 104), ylim=(-4, 104), xlabel=columns[0], ylabel=columns[1])
        axis.set_title(f"{score} ({len(points) - len(shown)} of {len(points)} unscored)", fontsize="medium")
    legend(figure, 5)
    return figure


def training_curves(logs: Mapping[Run, Sequence[StepRecord]]) -> Figure:
    """Plot the loss of each run at each step; of more than four runs as a mean over steps, with a legend outside."""
    logs = {run: records for run, records in logs.items() if records}
    if not logs:
        return nothing("No run was trained.")
    beside = len(logs) > 4
    figure, [axis] = panels(1, (8.5 if beside else 6, max(3.2, 0.22 * len(logs))))
    for (run, records), (colour, line) in zip(logs.items(), lines_of([run.method for run in logs]), strict=True):
        losses = pd.Series([r.loss for r in records]).rolling(SMOOTHED if beside else 1, min_periods=1).mean()
        axis.plot([r.step for r in records], losses, label=str(run), color=colour, linestyle=line, linewidth=1.8)
    smoothed = f"\n(mean over {SMOOTHED} steps)" if beside else ""
    axis.set(xlabel="optimizer step", ylabel=f"loss, nats a response token{smoothed}")
    axis.legend(frameon=False, loc="center left" if beside else "best", bbox_to_anchor=(1.0, 0.5) if beside else None)
    return figure


def length_histogram(lengths: Mapping[str, Sequence[int]], limit: int) -> Figure:
    """Plot a histogram of row lengths in tokens, with the limit at which rows are truncated."""
    if not lengths:
        return nothing("There are no rows.")
    figure, [axis] = panels(1, (6, 3), grid="")
    least, top = min(map(min, lengths.values())), max(map(max, lengths.values()))
    edges = np.linspace(least, max(top, least + 1), 31)
    for (name, values), style in zip(lengths.items(), cycle(styles()), strict=False):
        axis.hist(values, bins=edges.tolist(), histtype="step", label=f"{name} ({len(values)} rows)", **style)
    if limit <= top:
        axis.axvline(limit, color="black", linestyle=":", label=f"cut at {limit}")
    else:
        axis.set_title(f"longest row: {top} tokens; rows are cut at {limit}", fontsize="medium")
    axis.set(xlabel="tokens of a row", ylabel="rows")
    axis.legend(frameon=False)
    return figure
