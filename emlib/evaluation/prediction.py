"""A line through a few points, and how far it misses each point that it was not fitted on (leave-one-out)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression


@dataclass(frozen=True)
class Line:
    """The least-squares line y = intercept + slope * x, for y a percentage: predictions are cut to 0 and 100."""

    intercept: float
    slope: float

    def at(self, x: float) -> float:
        """Return the prediction at x."""
        return min(100.0, max(0.0, self.intercept + self.slope * x))

    def corners(self, start: float, stop: float) -> list[float]:
        """Return both ends, and between them the x at which the predictions begin or cease to be cut, in order."""
        cuts = [(share - self.intercept) / self.slope for share in (0, 100)] if self.slope else []
        return sorted([start, stop, *(x for x in cuts if start < x < stop)])


def line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Fit the line; None where all x are equal, or there are fewer than two."""
    if len(set(x)) < 2:
        return None
    slope, intercept = linear_regression(x, y)
    return Line(intercept, slope)


@dataclass(frozen=True)
class LeftOut:
    """What the other points say of one point: their line at its x, and the mean of their y."""

    by_line: float
    by_mean: float


def leave_one_out(x: Sequence[float], y: Sequence[float], twins: Sequence[Hashable]) -> list[LeftOut | None]:
    """Predict each y from the other points; None where these have no line.

    Points with the same x, or with equal `twins`, are no other points: they repeat what is left out.
    """
    found: list[LeftOut | None] = []
    for here, twin in zip(x, twins, strict=True):
        others = [(there, value) for there, value, other in zip(x, y, twins, strict=True)
                  if there != here and other != twin]
        heights = [value for _, value in others]
        fitted = line([there for there, _ in others], heights)
        found.append(None if fitted is None else LeftOut(fitted.at(here), fmean(heights)))
    return found
