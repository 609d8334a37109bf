"""Intervals of differences and means of independent estimates, from the interval of each.

MOVER, the method of variance estimates recovery (Zou and Donner 2008): an estimate's distance to each end of its
interval stands for its error on that side. With Wilson's intervals the difference is Newcombe's (1998) method 10. The
method stays valid near 0 and 100%, where a standard error would be 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from emlib.evaluation.statistics import Interval


def difference_interval(left: float, of_left: Interval, right: float, of_right: Interval) -> Interval:
    """Return the interval of `left - right` from the interval of each, all in percent."""
    gap = left - right
    return Interval(gap - sqrt((left - of_left.low) ** 2 + (of_right.high - right) ** 2),
                    gap + sqrt((of_left.high - left) ** 2 + (right - of_right.low) ** 2))


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Return the interval of the mean of independent estimates."""
    middle = sum(values) / len(values)
    below = sqrt(sum((value - each.low) ** 2 for value, each in zip(values, intervals, strict=True)))
    above = sqrt(sum((each.high - value) ** 2 for value, each in zip(values, intervals, strict=True)))
    return Interval(middle - below / len(values), middle + above / len(values))
