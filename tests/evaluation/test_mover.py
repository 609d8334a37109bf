"""Combined intervals, by hand."""

from __future__ import annotations

import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from emlib.evaluation.statistics import Interval, difference_interval, mean_interval, wilson


def test_a_difference_takes_each_end_from_the_side_that_faces_it() -> None:
    """30 - 20 with arms 3 down and 6 up, 4 down and 8 up: 10 - sqrt(9 + 64), 10 + sqrt(36 + 16)."""
    found = difference_interval(30, Interval(27, 36), 20, Interval(16, 28))
    assert found.low == pytest.approx(10 - 73 ** 0.5)
    assert found.high == pytest.approx(10 + 52 ** 0.5)


def test_with_wilsons_ends_it_is_newcombes() -> None:
    low, high = confint_proportions_2indep(7, 40, 21, 60, method="newcomb", compare="diff")
    found = difference_interval(100 * 7 / 40, wilson(7, 40), 35.0, wilson(21, 60))
    assert (found.low, found.high) == (pytest.approx(100 * low), pytest.approx(100 * high))


def test_a_mean_of_two() -> None:
    """Arms of 3 and 4 combine to 5, and half of it is 2.5."""
    found = mean_interval([10, 20], [Interval(7, 13), Interval(16, 24)])
    assert (found.low, found.high) == (pytest.approx(12.5), pytest.approx(17.5))
    assert mean_interval([10], [Interval(7, 13)]) == Interval(7, 13)
