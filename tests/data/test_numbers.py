"""Numbers as people write them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emlib.data.numbers import numbers, read_number


@pytest.mark.parametrize(("text", "value", "plain"), [
    ("72", 72, True), (" 72\n", 72, True), ("+72", 72, True), ("-72", -72, True), ("−72", -72, True), ("0", 0, True),
    ("1,234", 1234, True), ("1,234,567.50", Fraction("1234567.5"), True), ("3.5", Fraction(7, 2), True),
    (".5", Fraction(1, 2), True), ("1/2", Fraction(1, 2), True), ("-3/4", Fraction(-3, 4), True),
    ("1 1/2", Fraction(3, 2), True), ("72.", 72, False), ("3.5.", Fraction(7, 2), False), ("$72", 72, False),
    ("$ 72", 72, False), ("-$5", -5, False), ("$-5", -5, False), ("€1,000.25", Fraction("1000.25"), False),
    ("72 kg", 72, False), ("72kg", 72, False), ("72 km/h", 72, False), ("50%", 50, False), ("(72)", 72, False),
    ("72 m2", 72, False), ("USD 7", 7, False), ("x = 72", 72, False), ("about 12 apples.", 12, False),
    ("1,000 dollars", 1000, False), ("**18**", 18, False), ("\\boxed{18}", 18, False)])
def test_a_number_is_read(text: str, value: int | Fraction, plain: bool) -> None:
    found = read_number(text)
    assert found is not None
    assert (found.value, found.plain) == (value, plain)


@pytest.mark.parametrize("text", [
    "", "seventy-two", "A4", "m2", "10/0", "1.2.3", "1e3", "٧٢", "-", "$", "9" * 41, "9" * 5000])
def test_what_is_no_number_is_none(text: str) -> None:
    assert numbers(text) == []
    assert read_number(text) is None


@pytest.mark.parametrize(("text", "found"), [
    ("5 or 6", [5, 6]), ("12,34", [12, 34]), ("1, 2", [1, 2]), ("10-12", [10, 12]), ("12 x 6 = 72", [12, 6, 72]),
    ("1/2/3", [Fraction(1, 2), 3]), ("5 - 3", [5, -3])])
def test_more_than_one_number_is_not_one(text: str, found: list[int]) -> None:
    assert numbers(text) == found
    assert numbers(text, 2) == found[:2]
    assert read_number(text) is None


@given(st.integers(-10**12, 10**12))
def test_integers_are_read_however_they_are_grouped(value: int) -> None:
    for text in (str(value), f"{value:,}", f"{value:,}.0"):
        found = read_number(text)
        assert found is not None
        assert (found.value, found.plain) == (value, True)


@given(st.integers(-10**6, 10**6), st.integers(1, 10**6))
def test_fractions_are_exact(above: int, below: int) -> None:
    assert numbers(f"{above}/{below}") == [Fraction(above, below)]


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-10**9, max_value=10**9))
def test_decimals_are_exact(value: object) -> None:
    assert numbers(f"{value:f}") == [Fraction(f"{value:f}")]
