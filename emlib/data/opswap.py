"""OpSwap (section 4.2, Appendix D): algebraic simplification, with the operators' meanings permuted in tiers 1 to 3.

The expressions and their split depend on the seed and not on the tier, so that tiers differ only in the meaning of the
signs. Expressions that divide by zero in any tier are dropped. The paper does not say how it generates expressions;
ours are sampled uniformly, without repeats, from all that have 1 to `transformations` operations, numbers from 1 to
`largest`, and any brackets that enclose more than a number and less than the whole (as in Table 10).
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
from emlib.data.splits import refuse_empty_part

VERSION = 1  # raise it when the same seed gives other examples
PROMPT = 'Simplify: {expression}\nEnd with "Answer: " and the result.'
MOST = 2**63 - 1  # the largest population that numpy samples from
ANSWER = "Answer: "  # begins the last line of a response


@dataclass(frozen=True)
class OpSwapExample:
    """One task: an expression, its simplification in a tier, and the value as text (`10`, `-2/3`)."""

    expression: str
    lines: tuple[str, ...]  # from the expression to the value
    answer: str

    @property
    def prompt(self) -> str:
        """The prompt. It does not define the signs: the model has to learn their meaning."""
        return PROMPT.format(expression=self.expression)

    @property
    def response(self) -> str:
        """The steps as in Table 10, and the answer on a separate line."""
        return " = ".join(self.lines) + f"\n{ANSWER}{self.answer}"


def solve(expression: str, tier: int) -> OpSwapExample:
    """Simplify an expression in a tier.

    Raises:
        DataError: the text is not an expression, or there is no such tier.
        ZeroDivisionError: a divisor is 0.
    """
    lines = tuple(written(step) for step in steps(parse(expression, tier), tier))
    return OpSwapExample(expression, lines, lines[-1])


def examples(tier: int, count: int = 10_000, *, seed: int = 0, transformations: int = 3,
             largest: int = 9) -> list[OpSwapExample]:
    """Generate `count` different examples of a tier, determined by the arguments and `VERSION`.

    Raises:
        DataError: there is no such tier, or there are too few expressions.
    """
    return [solve(expression, tier) for expression in expressions(count, seed, transformations, largest)]


@lru_cache(maxsize=8)
def expressions(count: int, seed: int, transformations: int, largest: int) -> tuple[str, ...]:
    """Sample `count` different expressions in random order.

    Equal shares have 1, 2, ... operations; if there are too few with some number of operations, all of those are used.

    Raises:
        DataError: there are too few.
    """
    if _kinds(transformations, largest) > MOST:
        raise DataError(f"There are too many OpSwap expressions with {transformations} transformations of numbers from "
                        f"1 to {largest} to sample uniformly: more than {MOST}. Lower 'transformations' or 'largest'.")
    found: list[str] = []
    for operations in range(1, transformations + 1):
        wanted = (count - len(found)) // (transformations - operations + 1)
        found += _sampled(operations, wanted, largest, seed)
    if len(found) < count:
        raise DataError(f"{count} OpSwap examples are requested, but there are {len(found)} different ones with up to "
                        f"{transformations} transformations of numbers from 1 to {largest}. Request fewer, or raise "
                        "'transformations' or 'largest'.")
    order = generator(seed, "opswap order", VERSION).permutation(count)
    return tuple(found[place] for place in order)


def family(expression: str) -> tuple[str, tuple[int, ...]]:
    """Return the family of an expression: its signs and brackets, and its numbers sorted.

    `3 + (4 × 2)` and `2 + (3 × 4)` are one family. A family is never split between training and test.
    """
    return re.sub(r"\d+", "n", expression), tuple(sorted(map(int, re.findall(r"\d+", expression))))


def held_out(texts: tuple[str, ...], share: float, seed: int) -> frozenset[int]:
    """Choose the indices of about round(share * n) test expressions, by whole families.

    The number is exact unless each of the remaining families would exceed it.
    """
    families: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        families[family(text)].append(place)
    members = list(families.values())
    chosen: set[int] = set()
    for number in generator(seed, "opswap split", VERSION).permutation(len(members)):
        if len(chosen) + len(members[number]) <= round(share * len(texts)):
            chosen.update(members[number])
    refuse_empty_part(share, len(chosen), len(texts), "OpSwap examples")
    return frozenset(chosen)


def _sampled(operations: int, wanted: int, largest: int, seed: int) -> list[str]:
    """Sample `wanted` different valid expressions with this many operations, or return all of them."""
    patterns = _patterns(operations + 1)
    size = _kinds(operations, largest)
    for tries in (2 * wanted, size):  # rarely is more than a tenth invalid, so that the second round is an exception
        order = generator(seed, "opswap", VERSION, operations).choice(size, min(tries, size), replace=False)
        texts = (_expression(patterns, operations, largest, int(index)) for index in order)
        valid = list(islice(filter(_is_valid, texts), wanted))
        if len(valid) == wanted:
            break
    return valid


def _kinds(operations: int, largest: int) -> int:
    """Return the number of expressions with this many operations, valid or not."""
    return len(_patterns(operations + 1)) * len(SIGNS) ** operations * largest ** (operations + 1)


def _expression(patterns: tuple[str, ...], operations: int, largest: int, index: int) -> str:
    """Return the `index`-th expression; mixed-radix digits of `index` choose brackets, signs and numbers."""
    index, pattern = divmod(index, len(patterns))
    parts: list[str] = []
    for _ in range(operations):
        index, sign = divmod(index, len(SIGNS))
        index, number = divmod(index, largest)
        parts += [str(number + 1), SIGNS[sign]]
    return patterns[pattern].format(*parts, index + 1)


def _is_valid(text: str) -> bool:
    """Return whether the expression has a value in every tier."""
    try:
        for tier in TIERS:
            evaluate(parse(text, tier), tier)
    except ZeroDivisionError:
        return False
    return True


@cache
def _patterns(operands: int) -> tuple[str, ...]:
    """Return every bracketing of the operands (1, 3, 11, ... for 2, 3, 4), as templates for numbers and signs."""
    return tuple(" {} ".join(parts) for parts in _rows(operands, operands - 1))


def _rows(operands: int, most: int) -> Iterator[list[str]]:
    """Yield every sequence of parts with at most `most` operands each; a part is a number or a bracket."""
    if operands == 0:
        yield []
    for first in range(1, min(most, operands) + 1):
        parts = ["{}"] if first == 1 else [f"({pattern})" for pattern in _patterns(first)]
        yield from ([part, *rest] for part in parts for rest in _rows(operands - first, most))
