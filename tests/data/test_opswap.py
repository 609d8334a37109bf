"""OpSwap: Table 10 line by line, an independent evaluator, the laws of the grammar, and what the generator promises."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emlib.core import digests
from emlib.core.errors import DataError
from emlib.data import opswap
from emlib.data.opswap_grammar import MEANINGS, SIGNS, TIERS, Expression, Operation, evaluate, parse, steps, written

TABLE_10 = {
    0: ["(4 + 2) × (4 ÷ 2) - 2", "6 × (4 ÷ 2) - 2", "6 × 2 - 2", "12 - 2", "10"],
    1: ["(4 + 2) × (4 ÷ 2) - 2", "8 × (4 ÷ 2) - 2", "8 × 2 - 2", "10 - 2", "8"],
    2: ["(4 + 2) × (4 ÷ 2) - 2", "8 × (4 ÷ 2) - 2", "8 × 2 - 2", "8 × 1", "9"],
    3: ["(4 + 2) × (4 ÷ 2) - 2", "2 × (4 ÷ 2) - 2", "2 × 6 - 2", "1/3 - 2", "2/3"],
}


@pytest.mark.parametrize("tier", TIERS)
def test_table_10_line_by_line(tier: int) -> None:
    assert list(opswap.solve(TABLE_10[tier][0], tier).lines) == TABLE_10[tier]


def test_the_response_ends_with_the_answer_in_its_form() -> None:
    solved = opswap.solve("2 - 5 × 3", 0)
    assert solved.response == "2 - 5 × 3 = 2 - 15 = -13\nAnswer: -13"
    assert solved.prompt.startswith("Simplify: 2 - 5 × 3\n")


def independent(text: str, tier: int) -> Fraction:
    """Another method: rewrite the signs by their meanings, then two stacks (shunting-yard) over ordinary arithmetic."""
    meaning = {  # Table 10, spelled out again
        0: {"+": "+", "-": "-", "×": "×", "÷": "÷"}, 1: {"+": "×", "×": "+", "-": "-", "÷": "÷"},
        2: {"+": "×", "×": "+", "-": "÷", "÷": "-"}, 3: {"+": "-", "-": "×", "×": "÷", "÷": "+"}}[tier]
    binds = {"+": 1, "-": 1, "×": 2, "÷": 2}
    values: list[Fraction] = []
    waiting: list[str] = []

    def settle() -> None:
        sign, right, left = waiting.pop(), values.pop(), values.pop()
        values.append({"+": left + right, "-": left - right, "×": left * right}[sign] if sign != "÷" else left / right)

    for token in re.findall(r"\d+|[-+×÷()]", text):
        if token.isdigit():
            values.append(Fraction(int(token)))
        elif token == "(":
            waiting.append(token)
        elif token == ")":
            while waiting[-1] != "(":
                settle()
            waiting.pop()
        else:
            sign = meaning[token]
            while waiting and waiting[-1] != "(" and binds[waiting[-1]] >= binds[sign]:
                settle()
            waiting.append(sign)
    while waiting:
        settle()
    return values[0]


@pytest.mark.parametrize("tier", TIERS)
def test_an_independent_evaluator_agrees_on_every_line_of_1000_examples(tier: int) -> None:
    for example in opswap.examples(tier, 1000, seed=7):
        value = independent(example.expression, tier)
        assert Fraction(example.answer) == value
        assert example.answer == str(value)  # lowest terms
        assert all(evaluate(parse(line, tier), tier) == value for line in example.lines)
        assert len(example.lines) == 1 + len(re.findall(r" [-+×÷] ", example.expression))  # one operation a step


def test_the_independent_evaluator_knows_table_10_too() -> None:
    values = [independent(TABLE_10[tier][0], tier) for tier in TIERS]
    assert values == [10, 8, 9, Fraction(2, 3)]


BINDS = {tier: {sign: 1 if MEANINGS[tier][sign] in "+-" else 2 for sign in SIGNS} for tier in TIERS}
NUMBERS = st.fractions(min_value=-20, max_value=20, max_denominator=12)


def trees(tier: int) -> st.SearchStrategy[Expression]:
    """Any expression, bracketed where the tier needs it and, here and there, where it does not."""
    def bracketed(operand: Expression, parent: int, right: bool) -> Expression:
        if isinstance(operand, Fraction) or operand.bracketed:
            return operand
        own = BINDS[tier][operand.sign]
        needed = own < parent or (right and own == parent)
        return Operation(operand.sign, operand.left, operand.right, True) if needed else operand

    def joined(parts: tuple[str, Expression, Expression, bool]) -> Expression:
        sign, left, right, extra = parts
        parent = BINDS[tier][sign]
        return Operation(sign, bracketed(left, parent, False), bracketed(right, parent, True), extra)

    return st.recursive(
        NUMBERS, lambda part: st.tuples(st.sampled_from(SIGNS), part, part, st.booleans()).map(joined), max_leaves=8)


TIER_AND_TREE = st.sampled_from(TIERS).flatmap(lambda tier: st.tuples(st.just(tier), trees(tier)))


@given(TIER_AND_TREE)
def test_parsing_what_is_written_gives_the_expression_back(case: tuple[int, Expression]) -> None:
    tier, expression = case
    assert parse(written(expression), tier) == expression
    assert parse(written(expression).replace(" ", ""), tier) == expression  # spaces say nothing


@given(TIER_AND_TREE)
def test_every_simplification_keeps_the_value_and_takes_one_operation(case: tuple[int, Expression]) -> None:
    tier, expression = case
    try:
        value = evaluate(expression, tier)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            list(steps(expression, tier))
        return
    found = list(steps(expression, tier))
    assert found[-1] == value
    assert all(evaluate(parse(written(step), tier), tier) == value for step in found)

    def operations(e: Expression) -> int:
        return 0 if isinstance(e, Fraction) else 1 + operations(e.left) + operations(e.right)

    assert [operations(step) for step in found] == list(range(operations(expression), -1, -1))


@given(trees(0))
def test_tier_0_is_ordinary_arithmetic(expression: Expression) -> None:
    def ordinary(e: Expression) -> Fraction:
        if isinstance(e, Fraction):
            return e
        left, right = ordinary(e.left), ordinary(e.right)
        return {"+": lambda: left + right, "-": lambda: left - right, "×": lambda: left * right,
                "÷": lambda: left / right}[e.sign]()

    try:
        expected = ordinary(expression)
    except ZeroDivisionError:
        return
    assert evaluate(expression, 0) == expected


def test_meanings_are_permutations_with_the_orders_of_table_10() -> None:
    def times(tier: int, count: int) -> list[str]:
        signs = list(SIGNS)
        for _ in range(count):
            signs = [MEANINGS[tier][sign] for sign in signs]
        return signs

    for tier, order in ((0, 1), (1, 2), (2, 2), (3, 4)):  # tier 3 goes round through all four signs
        assert times(tier, order) == list(SIGNS)
        assert all(times(tier, count) != list(SIGNS) for count in range(1, order))


@pytest.fixture(scope="module")
def paper_sized() -> list[opswap.OpSwapExample]:
    return opswap.examples(3)


def test_10000_different_examples_of_up_to_three_transformations(paper_sized: list[opswap.OpSwapExample]) -> None:
    assert len({example.expression for example in paper_sized}) == 10_000
    counts = Counter(len(example.lines) - 1 for example in paper_sized)
    assert counts == {1: 4 * 9 * 9, 2: 4838, 3: 4838}  # all 324 of one operation; the rest in equal parts


def test_nine_in_ten_are_trained_on_and_no_family_stands_on_both_sides(
        paper_sized: list[opswap.OpSwapExample]) -> None:
    texts = tuple(example.expression for example in paper_sized)
    out = opswap.held_out(texts, 0.1, seed=0)
    assert len(out) == 1000
    train = {text for place, text in enumerate(texts) if place not in out}
    for place in out:  # every way to put its numbers into other places, reckoned without `family`
        parts = re.split(r"\d+", texts[place])
        for numbers in permutations(re.findall(r"\d+", texts[place])):
            changed = "".join(part + number for part, number in zip(parts, (*numbers, ""), strict=True))
            assert changed not in train


def test_a_family_is_its_signs_and_brackets_and_the_bag_of_its_numbers() -> None:
    assert opswap.family("3 + (4 × 2)") == opswap.family("2 + (3 × 4)")
    for other in ("3 + 4 × 2", "3 × (4 + 2)", "3 + (4 × 4)", "(3 + 4) × 2"):
        assert opswap.family("3 + (4 × 2)") != opswap.family(other)


def test_no_tier_divides_by_zero_in_an_expression_of_any() -> None:
    for text in opswap.expressions(2000, 1, 3, 3):  # small numbers, where many differences are 0
        for tier in TIERS:
            assert isinstance(independent(text, tier), Fraction), (text, tier)


def test_tiers_share_expressions_and_split_and_seeds_do_not() -> None:
    first = [[example.expression for example in opswap.examples(tier, 50)] for tier in TIERS]
    assert first[0] == first[1] == first[2] == first[3]
    assert first[0] != [example.expression for example in opswap.examples(0, 50, seed=1)]


def test_another_process_makes_the_same_bytes() -> None:
    code = ("from emlib.core import digests; from emlib.data import opswap as o\n"
            "print(o.VERSION, digests.of_value([[e.prompt, e.response] for e in o.examples(2, 500, seed=3)]))")
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    here = digests.of_value([[e.prompt, e.response] for e in opswap.examples(2, 500, seed=3)])
    assert said == [str(opswap.VERSION), here]


@pytest.mark.parametrize("tier", [-1, 4])
def test_a_tier_outside_0_to_3_is_refused(tier: int) -> None:
    for ask in (lambda: opswap.examples(tier, 5), lambda: parse("1 + 1", tier), lambda: opswap.solve("1 + 1", tier)):
        with pytest.raises(DataError, match=rf"no tier {tier}\. Its tiers are 0 to 3"):
            ask()


def test_more_examples_than_there_are_is_an_error_that_counts_them() -> None:
    assert len(opswap.examples(0, 324, transformations=1)) == 4 * 9 * 9
    with pytest.raises(DataError, match=r"325 OpSwap examples are requested, but there are 324 different ones"):
        opswap.examples(0, 325, transformations=1)
    # Numbers from 1 to 1: 4 expressions of one operation; of two, 16 pairs of signs in 3 bracketings, but for those
    # that divide by zero in a tier.
    valid = sum(all(defined(text, tier) for tier in TIERS) for a in SIGNS for b in SIGNS
                for text in (f"1 {a} 1 {b} 1", f"1 {a} (1 {b} 1)", f"(1 {a} 1) {b} 1"))
    assert len(opswap.examples(0, 4 + valid, transformations=2, largest=1)) == 4 + valid
    with pytest.raises(DataError, match=f"there are {4 + valid} different ones"):
        opswap.examples(0, 5 + valid, transformations=2, largest=1)


def test_more_expressions_than_a_draw_can_choose_among_are_refused() -> None:
    assert len(opswap.examples(0, 6, largest=10_000)) == 6  # 11 * 4^3 * 10^16 with three operations, below 2^63
    for asked in ({"largest": 100_000}, {"transformations": 9}):
        with pytest.raises(DataError, match=r"too many OpSwap expressions .* Lower 'transformations' or 'largest'"):
            opswap.examples(0, 6, **asked)


def defined(text: str, tier: int) -> bool:
    try:
        independent(text, tier)
    except ZeroDivisionError:
        return False
    return True


def test_a_split_that_leaves_one_side_empty_is_refused() -> None:
    with pytest.raises(DataError, match=r"leaves the training or the held-out part empty\. Set held_out"):
        opswap.held_out(("1 + 2", "3 + 4"), 0.1, seed=0)


@pytest.mark.parametrize("text", [
    "", "1 +", "1 2", "(1 + 2", "1 + 2)", "1 + x", "1 * 2", "- (1 + 2)", "1/0 + 1", "1/2/3", "1 / 2", "× 2", "1 ×× 2",
    "1 + + 2", "()", "1 (2)", "2.5", "(" * 2000, "9" * 5000])
def test_what_is_no_expression_is_told_with_what_is_one(text: str) -> None:
    for tier in TIERS:
        with pytest.raises(DataError, match=r"is no expression of OpSwap\. Expected numbers such as 4 or 2/3"):
            parse(text, tier)


def test_a_minus_before_a_number_is_its_own_in_every_tier() -> None:
    for tier in TIERS:
        assert parse("-3 × -2/3", tier) == Operation("×", Fraction(-3), Fraction(-2, 3))
        assert parse("(2)-(-3)", tier) == Operation("-", Fraction(2), Fraction(-3))
        assert parse("( 1 - 2 )", tier) == Operation("-", Fraction(1), Fraction(2), bracketed=True)
