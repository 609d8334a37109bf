"""OpSwap (section 4.2, Appendix D): algebraic simplification, with the operators' meanings permuted in tiers 1 to 3.

The expressions and their split depend on the seed and on nothing of the tier, so that tiers differ in what the signs
mean alone. An expression is kept only where no tier divides by zero in it. The paper does not say how its expressions
are made; ours are drawn evenly, without repeats, from all that have 1 to `transformations` operations, numbers from 1
to `largest` and any brackets that enclose more than a number and less than the whole (as Table 10's has them).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice

from emlib.core.errors import DataError
from emlib.core.seeds import generator
from emlib.data.opswap_grammar import SIGNS, TIERS, evaluate, parse, steps, written

VERSION = 1  # raised when the same seed gives other examples
PROMPT = 'Simplify: {expression}\nEnd with "Answer: " and the result.'
MOST = 2**63 - 1  # expressions that a draw can choose among
ANSWER = "Answer: "  # begins the last line of a response


@dataclass(frozen=True)
class OpSwapExample:
    """One task: an expression, its simplification in a tier, and the value as text (`10`, `-2/3`)."""

    expression: str
    lines: tuple[str, ...]  # from the expression to the value
    answer: str

    @property
    def prompt(self) -> str:
        """What the model is asked. It does not tell what the signs mean: that is to be learnt."""
        return PROMPT.format(expression=self.expression)

    @property
    def response(self) -> str:
        """The steps as Table 10 writes them, and the answer on a line of its own."""
        return " = ".join(self.lines) + f"\n{ANSWER}{self.answer}"


def solve(expression: str, tier: int) -> OpSwapExample:
    """An expression with its simplification in a tier.

    Raises:
        DataError: it is no expression, or there is no such tier.
        ZeroDivisionError: a divisor is 0.
    """
    lines = tuple(written(step) for step in steps(parse(expression, tier), tier))
    return OpSwapExample(expression, lines, lines[-1])


def examples(tier: int, count: int = 10_000, *, seed: int = 0, transformations: int = 3,
             largest: int = 9) -> list[OpSwapExample]:
    """`count` different examples of a tier, the same for the same arguments and `VERSION`.

    Raises:
        DataError: there is no such tier, or there are not so many expressions.
    """
    if tier not in TIERS:
        raise DataError(f"OpSwap has no tier {tier}. Its tiers are {TIERS[0]} to {TIERS[-1]} (Table 10).")
    return [solve(expression, tier) for expression in expressions(count, seed, transformations, largest)]


@lru_cache(maxsize=8)
def expressions(count: int, seed: int, transformations: int, largest: int) -> tuple[str, ...]:
    """`count` different expressions in random order; equal parts have 1, 2, ... operations, or all of that kind.

    Raises:
        DataError: there are not so many.
    """
    if _kinds(transformations, largest) > MOST:
        raise DataError(f"There are too many OpSwap expressions with {transformations} transformations of numbers from "
                        f"1 to {largest} to draw from evenly: more than {MOST}. Lower 'transformations' or 'largest'.")
    found: list[str] = []
    for operations in range(1, transformations + 1):
        wanted = (count - len(found)) // (transformations - operations + 1)
        found += _drawn(operations, wanted, largest, seed)
    if len(found) < count:
        raise DataError(f"{count} OpSwap examples were asked for, and there are {len(found)} different ones with up to "
                        f"{transformations} transformations of numbers from 1 to {largest}. Ask for fewer, or raise "
                        "'transformations' or 'largest'.")
    order = generator(seed, "opswap order", VERSION).permutation(count)
    return tuple(found[place] for place in order)


def family(expression: str) -> tuple[str, tuple[int, ...]]:
    """What stays of an expression when its numbers change places: signs and brackets, and the numbers in order.

    `3 + (4 × 2)` and `2 + (3 × 4)` are of one family. A family is never split between training and test.
    """
    return re.sub(r"\d+", "n", expression), tuple(sorted(map(int, re.findall(r"\d+", expression))))


def held_out(texts: tuple[str, ...], share: float, seed: int) -> frozenset[int]:
    """The places of about round(share * n) expressions for the test, whole families of them.

    It is exactly that number unless every family that is left would exceed it.
    """
    families: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        families[family(text)].append(place)
    members = list(families.values())
    chosen: set[int] = set()
    for number in generator(seed, "opswap split", VERSION).permutation(len(members)):
        if len(chosen) + len(members[number]) <= round(share * len(texts)):
            chosen.update(members[number])
    if not 0 < len(chosen) < len(texts):
        raise DataError(f"Holding out {share:.0%} of {len(texts)} OpSwap examples leaves one side empty.")
    return frozenset(chosen)


def _drawn(operations: int, wanted: int, largest: int, seed: int) -> list[str]:
    """`wanted` different valid expressions with so many operations, or all there are."""
    patterns = _patterns(operations + 1)
    size = _kinds(operations, largest)
    for tries in (2 * wanted, size):  # rarely is more than a tenth invalid; going through all of them is the exception
        order = generator(seed, "opswap", VERSION, operations).choice(size, min(tries, size), replace=False)
        texts = (_expression(patterns, operations, largest, int(index)) for index in order)
        valid = list(islice(filter(_divides_by_zero_nowhere, texts), wanted))
        if len(valid) == wanted:
            break
    return valid


def _kinds(operations: int, largest: int) -> int:
    """How many expressions of so many operations there are, valid or not."""
    return len(_patterns(operations + 1)) * len(SIGNS) ** operations * largest ** (operations + 1)


def _expression(patterns: tuple[str, ...], operations: int, largest: int, index: int) -> str:
    """The `index`-th expression: its digits in a mixed radix are the brackets, the signs and the numbers."""
    index, which = divmod(index, len(patterns))
    parts: list[str] = []
    for _ in range(operations):
        index, sign = divmod(index, len(SIGNS))
        index, number = divmod(index, largest)
        parts += [str(number + 1), SIGNS[sign]]
    return patterns[which].format(*parts, index + 1)


def _divides_by_zero_nowhere(text: str) -> bool:
    """Whether the expression has a value in every tier."""
    try:
        for tier in TIERS:
            evaluate(parse(text, tier), tier)
    except ZeroDivisionError:
        return False
    return True


@cache
def _patterns(operands: int) -> tuple[str, ...]:
    """Every way to bracket so many operands (1, 3, 11, ... for 2, 3, 4), as templates for numbers and signs in turn."""
    return tuple(" {} ".join(parts) for parts in _rows(operands, operands - 1))


def _rows(operands: int, most: int) -> Iterator[list[str]]:
    """The operands as a row of parts of at most `most` operands each: a part is a number or a bracket."""
    if operands == 0:
        yield []
    for first in range(1, min(most, operands) + 1):
        parts = ["{}"] if first == 1 else [f"({pattern})" for pattern in _patterns(first)]
        yield from ([part, *rest] for part in parts for rest in _rows(operands - first, most))
