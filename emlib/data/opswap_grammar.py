"""OpSwap's expressions: a grammar of four signs whose meanings, and so their precedence, depend on the tier.

    expression := term  (loose term)*         loose: the signs that mean + or - in this tier
    term       := atom  (tight atom)*         tight: the signs that mean × or ÷ in this tier
    atom       := '-'? digits ('/' digits)?  |  '(' expression ')'

A sign's meaning in the tier decides its precedence; both levels are left-associative. Table 10 (Appendix D) shows this
in tier 2: the last `-` of `8 × 2 - 2` means division and is evaluated first. Numbers are exact rationals: `1/3` is a
number, `1 ÷ 3` an operation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from emlib.core.errors import DataError

SIGNS = ("+", "-", "×", "÷")
MEANINGS: tuple[dict[str, str], ...] = (  # Table 10: what each sign means in tiers 0 to 3
    dict(zip(SIGNS, "+-×÷", strict=True)),
    dict(zip(SIGNS, "×-+÷", strict=True)),
    dict(zip(SIGNS, "×÷+-", strict=True)),
    dict(zip(SIGNS, "-×÷+", strict=True)),
)
TIERS = range(len(MEANINGS))
_TIGHT = tuple(frozenset(sign for sign in SIGNS if meaning[sign] in "×÷") for meaning in MEANINGS)
_LOOSE = tuple(frozenset(SIGNS) - tight for tight in _TIGHT)
_TOKEN = re.compile(r"\s*(\d+(?:/\d+)?|[-+×÷()])")


@dataclass(frozen=True, slots=True)
class Operation:
    """A sign with two operands; `bracketed` if the text has brackets around it, needed or not."""

    sign: str
    left: Expression
    right: Expression
    bracketed: bool = False


Expression = Fraction | Operation


def parse(text: str, tier: int) -> Expression:
    """Parse `text` as an expression of a tier.

    Raises:
        DataError: it is not an expression; the message gives the position and what was expected. Or there is no such
            tier.
    """
    if tier not in TIERS:
        raise DataError(f"OpSwap has no tier {tier}. Its tiers are {TIERS[0]} to {TIERS[-1]} (Table 10).")
    return _Reader(text, tier).whole()


def evaluate(expression: Expression, tier: int) -> Fraction:
    """Compute the exact value in a tier.

    Raises:
        ZeroDivisionError: a divisor is 0.
    """
    if isinstance(expression, Fraction):
        return expression
    return apply(expression.sign, evaluate(expression.left, tier), evaluate(expression.right, tier), tier)


def apply(sign: str, left: Fraction, right: Fraction, tier: int) -> Fraction:
    """Compute one operation by the sign's meaning in the tier."""
    match MEANINGS[tier][sign]:
        case "+":
            return left + right
        case "-":
            return left - right
        case "×":
            return left * right
        case _:
            return left / right


def transformed(operation: Operation, tier: int) -> Expression:
    """Simplify once: replace the leftmost operation on two numbers by its value."""
    if isinstance(operation.left, Operation):
        return replace(operation, left=transformed(operation.left, tier))
    if isinstance(operation.right, Operation):
        return replace(operation, right=transformed(operation.right, tier))
    return apply(operation.sign, operation.left, operation.right, tier)


def steps(expression: Expression, tier: int) -> Iterator[Expression]:
    """Yield the expression and the result of each simplification, up to the value."""
    yield expression
    while isinstance(expression, Operation):
        expression = transformed(expression, tier)
        yield expression


def written(expression: Expression) -> str:
    """Return the expression as text, with brackets around negative operands."""
    if isinstance(expression, Fraction):
        return str(expression)
    text = f"{_operand(expression.left)} {expression.sign} {_operand(expression.right)}"
    return f"({text})" if expression.bracketed else text


def _operand(expression: Expression) -> str:
    text = written(expression)
    return f"({text})" if isinstance(expression, Fraction) and expression < 0 else text


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str, tier: int) -> None:
        self.text, self.tight, self.loose = text, _TIGHT[tier], _LOOSE[tier]
        self.place = self.end = 0  # where the current token begins and ends
        self.token = ""
        self._next()

    def whole(self) -> Expression:
        found = self._expression()
        if self.token:
            raise self._unexpected("a sign or the end")
        return found

    def _expression(self) -> Expression:
        left = self._term()
        while self.token in self.loose:
            left = Operation(self._take(), left, self._term())
        return left

    def _term(self) -> Expression:
        left = self._atom()
        while self.token in self.tight:
            left = Operation(self._take(), left, self._atom())
        return left

    def _atom(self) -> Expression:
        if self.token == "(":
            self._next()
            inner = self._expression()
            if self.token != ")":
                raise self._unexpected("a sign or ')'")
            self._next()
            return replace(inner, bracketed=True) if isinstance(inner, Operation) else inner
        minus = self._take() if self.token == "-" else ""
        if not self.token[:1].isdigit():
            raise self._unexpected("a number" if minus else "a number or '('")
        try:
            number = Fraction(minus + self.token)
        except ZeroDivisionError as error:
            raise self._unexpected("a denominator other than 0") from error
        self._next()
        return number

    def _take(self) -> str:
        token = self.token
        self._next()
        return token

    def _next(self) -> None:
        found = _TOKEN.match(self.text, self.end)
        if found is None and self.text[self.end:].strip():
            self.place, self.token = self.end, self.text[self.end:].strip()[0]
            raise self._unexpected(f"a number, a bracket or one of {' '.join(SIGNS)}")
        self.token = found[1] if found else ""
        self.place, self.end = (found.start(1), found.end()) if found else (len(self.text), len(self.text))

    def _unexpected(self, wanted: str) -> DataError:
        found = f"found '{self.token}'" if self.token else "found the end"
        return DataError(f"'{self.text}', character {self.place + 1}: expected {wanted}, {found}.")
