"""A line through a few points, and how far it misses each point that it was not fitted on (leave-one-out)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

ENOUGH = 3  # points, below which leaving one out leaves no line


@dataclass(frozen=True)
class Line:
    """The least-squares line y = intercept + slope * x, for y a percentage: predictions are cut to 0 and 100."""

    intercept: float
    slope: float

    def at(self, x: float) -> float:
        """Return the prediction at x."""
        return min(100.0, max(0.0, self.intercept + self.slope * x))


def line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Fit the line; None where all x are equal, or there are fewer than two."""
    if len(set(x)) < 2:
        return None
    middle, height = fmean(x), fmean(y)
    slope = sum((one - middle) * (other - height) for one, other in zip(x, y, strict=True)) / sum(
        (one - middle) ** 2 for one in x)
    return Line(height - slope * middle, slope)


def leave_one_out(x: Sequence[float], y: Sequence[float]) -> list[float | None]:
    """Predict each y by the line through the other points; None where these have no line."""
    found = [line(_without(x, place), _without(y, place)) for place in range(len(x))]
    return [None if one is None or len(x) < ENOUGH else one.at(x[place]) for place, one in enumerate(found)]


def by_mean(y: Sequence[float]) -> list[float | None]:
    """Predict each y by the mean of the others, which is what a line has to be better than."""
    return [None if len(y) < ENOUGH else fmean(_without(y, place)) for place in range(len(y))]


def _without(values: Sequence[float], place: int) -> list[float]:
    return [*values[:place], *values[place + 1:]]
