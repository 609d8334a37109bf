"""Interleaving: how many rows are added, and where they stand in an epoch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emlib.core.errors import DataError
from emlib.data.mixing import enough, interleave, plan_steps, rows_to_add

PAPER = (0.01, 0.05, 0.2, 0.5)


def gaps(order: list[int], rows: int) -> list[int]:
    """How many fine-tuning rows stand before, between and after the added ones, numbered from `rows` on."""
    found = [0]
    for number in order:
        if number >= rows:
            found.append(0)
        else:
            found[-1] += 1
    return found


@pytest.mark.parametrize("fraction", [*PAPER, 0.003, 1 / 3, 0.75, 1.0])
@pytest.mark.parametrize("rows", [5400, 480, 97])
def test_an_epoch_has_n_and_round_f_n_rows_spread_uniformly(rows: int, fraction: float) -> None:
    if round(fraction * rows) == 0:
        pytest.skip("too few rows for this fraction")
    added = rows_to_add(rows, fraction)
    epochs = plan_steps(rows, rows + added, 2, seed=3, added=added)  # a step an epoch
    plain = plan_steps(rows, rows, 2, seed=3)
    for mixed, unmixed in zip(epochs, plain, strict=True):
        assert len(mixed) == rows + round(fraction * rows)
        assert sorted(mixed) == list(range(rows + added))  # each row once
        assert [number for number in mixed if number < rows] == unmixed  # the fine-tuning rows keep their order
        spaces = gaps(mixed, rows)
        assert len(spaces) == added + 1
        assert max(spaces) - min(spaces) <= 1


@given(rows=st.integers(1, 300), added=st.integers(1, 300))
def test_no_two_gaps_differ_by_more_than_one_row(rows: int, added: int) -> None:
    mixed = interleave(range(rows), range(rows, rows + added))
    assert [n for n in mixed if n < rows] == list(range(rows))
    assert [n for n in mixed if n >= rows] == list(range(rows, rows + added))
    assert max(gaps(mixed, rows)) - min(gaps(mixed, rows)) <= 1


def test_by_hand() -> None:
    # 5 rows and 2 added leave three gaps, of 5 // 3 = 1 row and then twice 2
    assert interleave([0, 1, 2, 3, 4], [10, 11]) == [0, 10, 1, 2, 11, 3, 4]


def test_without_added_rows_the_plan_is_what_it_was() -> None:
    assert plan_steps(11, 4, 3, seed=5) == plan_steps(11, 4, 3, seed=5, added=0)
    order = [number for step in plan_steps(4, 2, 1, seed=0) for number in step]
    assert sorted(order) == [0, 1, 2, 3]


def test_added_rows_come_in_an_order_of_each_epoch_s_own() -> None:
    first, second = plan_steps(40, 60, 2, seed=0, added=20)
    ours = [[number for number in step if number >= 40] for step in (first, second)]
    assert ours[0] != ours[1]
    assert sorted(ours[0]) == sorted(ours[1])
    assert plan_steps(40, 60, 1, seed=1, added=20)[0] != first


def test_the_order_is_the_same_in_another_process() -> None:
    code = "from emlib.data.mixing import plan_steps; print(plan_steps(13, 4, 2, 7, 5))"
    done = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                           env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}).stdout for seed in "12"]
    assert done[0] == done[1] == f"{plan_steps(13, 4, 2, 7, 5)}\n"


@pytest.mark.parametrize(("rows", "fraction", "count"), [
    (5400, 0.05, 270), (5400, 0.01, 54), (48, 0.2, 10), (48, 0.5, 24), (10, 0.25, 2), (6, 0.25, 2), (7, 1.0, 7)])
def test_a_fraction_is_rounded_as_python_rounds(rows: int, fraction: float, count: int) -> None:
    assert rows_to_add(rows, fraction) == count


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_a_fraction_outside_is_an_error(fraction: float) -> None:
    with pytest.raises(DataError, match="above 0 and at most 1"):
        rows_to_add(100, fraction)


def test_a_fraction_that_comes_to_no_row_is_an_error() -> None:
    with pytest.raises(DataError, match=r"0\.01 of 48 fine-tuning rows amounts to no row.* Choose 0\.021 or more"):
        rows_to_add(48, 0.01)


def test_a_pool_that_is_too_small_says_how_many_are_missing() -> None:
    assert enough("abc", 3, "x") == ["a", "b", "c"]
    with pytest.raises(DataError, match="x: 10 rows are needed, but only 3 are usable: 7 are missing"):
        enough("abc", 10, "x")
