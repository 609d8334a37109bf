"""Places labels next to the points of a figure, without overlaps and inside the axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

# Candidate positions of a label relative to its marker, best first: the directions, and the distances in points.
SIDES = ((1, 0.6), (-1, 0.6), (1, -0.6), (-1, -0.6), (0, 1), (0, -1), (1, 0), (-1, 0), (0.4, 1),
         (-0.4, 1), (0.4, -1), (-0.4, -1))
REACHES = (4, 7, 11, 16, 22, 30, 40, 52)
OFFSETS = [(dx * reach, dy * reach) for reach in REACHES for dx, dy in SIDES]
RIGHT = [(dx, dy) for dx in (5, 12, 20, 30) for dy in (0, 3, -3, 9, -9, 16, -16, 24, -24, 34, -34)]  # of a line's end
NEAR = 7  # points; a label farther away gets a line to its point
MARK = 3.2  # half the width of a marker, in points
TEXT = 3  # what a label covers counts so many times as much as what its line crosses
Array = NDArray[np.float64]  # in pixels: a point, or left, bottom, right and top of each box (boxes, 4)
NONE: Array = np.empty((0, 4))


@dataclass(frozen=True)
class Label:
    """A text that belongs to the point (x, y) of the data."""

    x: float
    y: float
    text: str
    colour: str = "black"


def place(axis: Axes, labels: Sequence[Label], size: float,
          offsets: Sequence[tuple[float, float]] = OFFSETS) -> None:
    """Write each label next to its point, where it covers no marker, line, other label or edge of the axes.

    `size` is the font size; `offsets` are the places, the best first. If no place is free, one that covers little is
    used; a label far from its point gets a line to it, which should cross little. A label of no finite point is left
    out. Call this last, because it fixes the figure's layout.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    pixels = figure.dpi / 72
    taken, written = _drawn(axis, pixels), NONE
    for label in labels:
        if not np.isfinite([label.x, label.y]).all():
            continue
        note = axis.annotate(label.text, (label.x, label.y), (0, 0), textcoords="offset points", fontsize=size,
                             color=label.colour, ha="center", va="center")
        point, extent = axis.transData.transform((label.x, label.y)), np.array(note.get_window_extent().size)
        boxes = {offset: _box(point, np.array(offset) * pixels, extent) for offset in offsets}
        leaders = {offset: _leader(point, offset, pixels) for offset in offsets}
        within = [offset for offset, box in boxes.items() if axis.bbox.x0 <= box[0] and box[2] <= axis.bbox.x1]
        costs = {offset: TEXT * _covered(boxes[offset], axis, taken, written) + sum(
            _common(piece, each) for each in (taken, written) for piece in leaders[offset])
            for offset in within or boxes}
        best = min(costs, key=costs.__getitem__)
        written, taken = np.vstack([written, boxes[best]]), np.vstack([taken, leaders[best]])
        x, y = ((boxes[best][:2] + boxes[best][2:]) / 2 - point) / pixels
        note.set_position((x, y))
        if len(leaders[best]):
            axis.annotate("", (label.x, label.y), best, textcoords="offset points", arrowprops={
                "arrowstyle": "-", "linewidth": 0.4, "color": label.colour, "shrinkA": 0, "shrinkB": 2})


def _leader(point: Array, offset: tuple[float, float], pixels: float) -> Array:
    """Return boxes along the line from a point to its label; none if the label is near."""
    far = np.array(offset) * pixels
    return _along(point, point + far, pixels) if np.abs(offset).max() > NEAR else NONE


def _drawn(axis: Axes, pixels: float) -> Array:
    """Return boxes around all markers, and along all lines and error bars."""
    boxes = [NONE]
    for line in axis.lines:
        if line.get_transform() != axis.transData:  # a line across the axes
            continue
        points = axis.transData.transform(line.get_xydata())
        if line.get_marker() not in ("None", "none", "", None):
            boxes.append(_around(points[np.isfinite(points).all(axis=1)], MARK * pixels))
        if line.get_linestyle() != "None":
            boxes += [_along(*ends, pixels) for ends in itertools.pairwise(points)]
    for bars in axis.collections:  # error bars
        for bar in bars.get_segments() if isinstance(bars, LineCollection) else []:
            boxes += [_along(*ends, pixels) for ends in itertools.pairwise(axis.transData.transform(bar))]
    return np.concatenate(boxes)


def _along(start: Array, end: Array, pixels: float) -> Array:
    """Return small boxes along a line; none where an end is not finite, as where nothing is drawn."""
    length = np.hypot(*(end - start))
    if not np.isfinite(length):
        return NONE
    steps = max(2, int(length / (2 * pixels)))
    return _around(np.linspace(start, end, steps), pixels / 2)


def _around(points: Array, half: float) -> Array:
    return np.hstack([points - half, points + half])


def _box(point: Array, offset: Array, extent: Array) -> Array:
    """Return the box of a text whose side or corner nearest to its point is `offset` away from it."""
    lower = point + offset + (np.sign(offset) - 1) / 2 * extent
    return np.concatenate([lower, lower + extent])


def _covered(box: Array, axis: Axes, marks: Array, labels: Array) -> float:
    """Return the area of `box` that covers something or lies outside the axes."""
    inside = _common(box, np.array([axis.bbox.extents]))
    return _common(box, marks) + _common(box, labels) + _common(box, box[None]) - inside


def _common(box: Array, others: Array) -> float:
    """Return the sum of the areas that `box` shares with each other box."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.clip(sides, 0, None).prod(axis=1).sum())
