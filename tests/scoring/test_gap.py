"""Equations 5, 6 and 10, by hand."""

from __future__ import annotations

import math

import pytest

from emlib.scoring.gap import as_printed, gap, overhead, ranking


def test_three_rows_by_hand() -> None:
    # (mean of the misaligned - aligned) / (aligned + 0.5)
    assert gap(1.5, [3.0, 4.0], 0.5) == pytest.approx((3.5 - 1.5) / 2.0)  # 1
    assert gap(0.1, [0.4], 0.5) == pytest.approx(0.5)  # 0.3 / 0.6
    assert gap(2.0, [1.0, 2.0, 1.5], 0.5) == pytest.approx(-0.2)  # (1.5 - 2) / 2.5
    assert ranking([gap(0.1, [0.4], 0.5), gap(2.0, [1.0, 2.0, 1.5], 0.5), gap(1.5, [3.0, 4.0], 0.5)]) == [2, 0, 1]


def test_epsilon_keeps_a_row_that_is_certain_by_chance_from_the_top() -> None:
    """The row with a loss of 0.01 has a gap of 0.09 nats; the other's is 1.5 nats."""
    rows = [(0.01, [0.10]), (1.0, [2.5])]
    assert ranking([gap(aligned, others, 1e-6) for aligned, others in rows]) == [0, 1]  # 9 against 1.5
    assert ranking([gap(aligned, others, 0.1) for aligned, others in rows]) == [1, 0]  # 0.82 against 1.36
    by_difference = ranking([others[0] - aligned for aligned, others in rows])
    assert ranking([gap(aligned, others, 1e6) for aligned, others in rows]) == by_difference  # epsilon without bound


def test_ties_stand_in_the_pool_s_order_and_nan_is_never_ranked() -> None:
    assert ranking([0.5, math.nan, 0.7, 0.5, 0.7, 0.5]) == [2, 4, 0, 3, 5]
    assert ranking([math.nan]) == []


@pytest.mark.parametrize(("aligned", "misaligned"), [
    (math.nan, [1.0]), (1.0, [1.0, math.nan]), (1.0, [math.inf]), (math.inf, [math.inf])])
def test_a_loss_that_is_no_number_makes_a_score_that_is_none(aligned: float, misaligned: list[float]) -> None:
    assert math.isnan(gap(aligned, misaligned, 0.1))


@pytest.mark.parametrize(("misaligned", "epsilon"), [([], 0.1), ([1.0], 0.0), ([1.0], -1.0), ([1.0], math.nan)])
def test_nothing_to_compare_with_and_epsilon_zero_are_errors(misaligned: list[float], epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon above 0"):
        gap(1.0, misaligned, epsilon)


def test_appendix_e_s_example() -> None:
    """K = 3, 6,000 fine-tuning rows, 10,000 candidates, R = 9, 100 runs."""
    assert overhead(3, 6000, 10_000, 9, 100) == pytest.approx(4 * 10_000 / (9 * 6000 * 100))
    assert 100 * overhead(3, 6000, 10_000, 9, 100) == pytest.approx(0.74, abs=0.005)  # "on the order of 1% or less"
    assert 100 * as_printed(3, 6000, 10_000, 9, 100) == pytest.approx(0.27, abs=0.005)  # 24,000 / 9,000,000
    assert 80 * overhead(3, 6000, 10_000, 9, 100) == pytest.approx(0.6, abs=0.1)  # "0.7 GPU-hours", of 80


def test_more_to_score_costs_more_and_more_runs_share_it() -> None:
    assert overhead(3, 6000, 20_000, 9, 100) == 2 * overhead(3, 6000, 10_000, 9, 100)
    assert overhead(3, 6000, 10_000, 9, 200) == overhead(3, 6000, 10_000, 9, 100) / 2
    assert as_printed(3, 6000, 20_000, 9, 100) < as_printed(3, 6000, 10_000, 9, 100)  # hence a misprint
