"""Places labels next to the points of a figure, without overlaps and inside the axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.transforms import Bbox, BboxBase
from numpy.typing import NDArray

# Candidate positions of a label relative to its marker, best first: the directions, and the distances in points.
SIDES = ((1, 0.6), (-1, 0.6), (1, -0.6), (-1, -0.6), (0, 1), (0, -1), (1, 0), (-1, 0), (0.4, 1),
         (-0.4, 1), (0.4, -1), (-0.4, -1))
REACHES = (4, 7, 11, 16, 22, 30)
NEAR = 7  # points; a label farther away gets a line to its point
Corners = NDArray[np.float64]
MARK = 3.2  # half the width of a marker, in points


@dataclass(frozen=True)
class Label:
    """A text that belongs to the point (x, y) of the data."""

    x: float
    y: float
    text: str
    colour: str = "black"


def place(axis: Axes, labels: Sequence[Label], size: float) -> list[Bbox]:
    """Write each label next to its point, where it covers no marker, line, other label or edge of the axes.

    `size` is the font size. If no place is free, the one that covers least is used; a label far from its point gets a
    line to it. Call this last, because it fixes the figure's layout. Returns the labels' boxes, in pixels.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    pixels = figure.dpi / 72
    taken = _corners(_drawn(axis, pixels))
    inside, written = _corners([axis.bbox]), list[Bbox]()
    for label in labels:
        note = axis.annotate(label.text, (label.x, label.y), (0, 0), textcoords="offset points", fontsize=size,
                             color=label.colour, ha="center", va="center")
        extent = note.get_window_extent()
        corner = axis.transData.transform((label.x, label.y))
        boxes = {(dx * reach, dy * reach): _box(corner, np.array((dx * reach * pixels, dy * reach * pixels)), extent)
                 for reach in REACHES for dx, dy in SIDES}
        within = {offset: box for offset, box in boxes.items() if axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1}
        texts = _corners(written)
        spot = min(within or boxes, key=lambda offset: (
            _covered(boxes[offset], taken, texts, inside)
            + sum(_common(piece, texts) for piece in _leader(corner, offset, pixels))))
        box = boxes[spot]
        written.append(box)
        centre = ((box.x0 + box.x1) / 2 - corner[0]) / pixels, ((box.y0 + box.y1) / 2 - corner[1]) / pixels
        note.set_position(centre)
        leader = _leader(corner, spot, pixels)
        if leader:
            taken = np.concatenate([taken, _corners(leader)])
            axis.annotate("", (label.x, label.y), spot, textcoords="offset points", arrowprops={
                "arrowstyle": "-", "linewidth": 0.4, "color": label.colour, "shrinkA": 0, "shrinkB": 2})
    return written


def _leader(corner: NDArray[np.float64], offset: tuple[float, float], pixels: float) -> list[Bbox]:
    """Return boxes along the line from a point to its label; empty if the label is near."""
    far = np.array(offset) * pixels
    return _along(corner, corner + far, pixels) if np.abs(offset).max() > NEAR else []


def _drawn(axis: Axes, pixels: float) -> list[Bbox]:
    """Return boxes around all markers, and along all lines and error bars."""
    boxes = []
    for line in axis.lines:
        if line.get_transform() != axis.transData:  # a line across the axes
            continue
        points = axis.transData.transform(line.get_xydata())
        if line.get_marker() not in ("None", "none", "", None):
            boxes += [_around(point, MARK * pixels) for point in points]
        if line.get_linestyle() != "None":
            for start, end in itertools.pairwise(points):
                boxes += _along(start, end, pixels)
    for bars in axis.collections:  # error bars
        if isinstance(bars, LineCollection):
            for bar in bars.get_segments():
                for start, end in itertools.pairwise(axis.transData.transform(bar)):
                    boxes += _along(start, end, pixels)
    return boxes


def _along(start: NDArray[np.float64], end: NDArray[np.float64], pixels: float) -> list[Bbox]:
    """Return small boxes along a line."""
    steps = max(2, int(np.hypot(*(end - start)) / (2 * pixels)))
    return [_around(point, pixels / 2) for point in np.linspace(start, end, steps)]


def _around(point: NDArray[np.float64], half: float) -> Bbox:
    return Bbox([point - half, point + half])


def _box(corner: NDArray[np.float64], offset: NDArray[np.float64], extent: Bbox) -> Bbox:
    """Return the box of a text whose side or corner nearest to its point is `offset` away from it."""
    lower = corner + offset + (np.sign(offset) - 1) / 2 * extent.size
    return Bbox([lower, lower + extent.size])


def _covered(box: Bbox, marks: Corners, labels: Corners, inside: Corners) -> float:
    """Return the area of `box` that covers something or lies outside the axes."""
    return _common(box, marks) + _common(box, labels) + box.width * box.height - _common(box, inside)


def _corners(boxes: Sequence[BboxBase]) -> Corners:
    """Return left, bottom, right and top of each box: (boxes, 4)."""
    return np.array([box.extents for box in boxes]).reshape(-1, 4)


def _common(box: Bbox, others: Corners) -> float:
    """Return the sum of the areas that `box` shares with each other box."""
    sides = np.minimum(box.max, others[:, 2:]) - np.maximum(box.min, others[:, :2])
    return float(np.clip(sides, 0, None).prod(axis=1).sum())
