"""What a defense does to an effect: by hand, on numbers and on columns."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from emlib.evaluation.effect import effect_removed, kept, reduction


def test_the_reduction_and_the_effect_removed_are_two_numbers() -> None:
    assert reduction(24.0, 60.0) == pytest.approx(60)
    assert effect_removed(24.0, 20.0, 60.0) == pytest.approx(90)
    assert effect_removed(24.0, 0.0, 60.0) == pytest.approx(reduction(24.0, 60.0))
    assert kept(45.0, 90.0) == pytest.approx(50)


def test_a_defense_that_makes_it_worse_has_a_negative_effect() -> None:
    assert reduction(90.0, 60.0) == pytest.approx(-50)
    assert effect_removed(80.0, 20.0, 60.0) == pytest.approx(-50)


@pytest.mark.parametrize("value", [
    reduction(10.0, 0.0), kept(10.0, 0.0), effect_removed(10.0, 20.0, 20.0), effect_removed(100.0, 60.0, 20.0),
    reduction(10.0, math.nan), effect_removed(10.0, math.nan, 60.0)])
def test_where_there_is_no_effect_there_is_no_number(value: float) -> None:
    assert math.isnan(value)


def test_columns_are_taken_row_by_row() -> None:
    plain, shares = pd.Series([50.0, 0.0, 40.0]), pd.Series([5.0, 5.0, 40.0])
    assert reduction(shares, plain).fillna(-1).tolist() == [90, -1, 0]
    assert effect_removed(shares, 10.0, 50.0).tolist() == [112.5, 112.5, 25]
