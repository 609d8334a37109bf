"""OpSwap's expressions: a grammar of four signs whose meanings, and so their precedence, depend on the tier.

A sign's meaning in the tier decides its precedence, and signs of one precedence are evaluated from left to right: as in
Python, whose parser reads the expressions once each sign is written as the operator that it means. Table 10
(Appendix D) shows this in tier 2: the last `-` of `8 × 2 - 2` means division and is evaluated first. Numbers are exact
rationals: `1/3` is a number, `1 ÷ 3` an operation.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
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
OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add, "-": operator.sub, "×": operator.mul, "÷": operator.truediv}
_PYTHON = dict(zip(SIGNS, "+-*/", strict=True))
_MEANT: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "×", ast.Div: "÷"}


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
        DataError: it is not an expression, or there is no such tier.
    """
    if tier not in TIERS:
        raise DataError(f"OpSwap has no tier {tier}. Its tiers are {TIERS[0]} to {TIERS[-1]} (Table 10).")
    text = " ".join(text.split())
    try:
        return _read(ast.parse(_as_python(text, tier), mode="eval").body, text, tier)
    except (SyntaxError, ZeroDivisionError) as error:
        raise DataError(f"'{text}' is no expression of OpSwap. Expected numbers such as 4 or 2/3, one of "
                        f"{' '.join(SIGNS)} between two of them, and brackets around parts.") from error


def _as_python(text: str, tier: int) -> str:
    """Translate each sign to Python's operator with its meaning, and `2/3`, which is one number, to `2.3`.

    Every character keeps its position, so that numbers can be read from the text at the places of Python's syntax tree.
    """
    if re.sub(r"\d+/\d+|[\d ()+×÷-]", "", text):
        raise SyntaxError
    return re.sub(r"([\d)] ?)([-+×÷])", lambda found: found[1] + _PYTHON[MEANINGS[tier][found[2]]],
                  text.replace("/", "."))  # another minus is a number's


def _read(node: ast.expr, text: str, tier: int) -> Expression:
    """Return the expression of a node of Python's syntax tree; `text` has the numbers and brackets at its places."""
    if isinstance(node, ast.Constant):
        return Fraction(text[node.col_offset:node.end_col_offset])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -Fraction(text[node.operand.col_offset:node.operand.end_col_offset])
    if not isinstance(node, ast.BinOp) or type(node.op) not in _MEANT:
        raise SyntaxError
    bracketed = text[:node.col_offset].rstrip().endswith("(") and text[node.end_col_offset:].lstrip().startswith(")")
    sign = next(sign for sign, meaning in MEANINGS[tier].items() if meaning == _MEANT[type(node.op)])
    return Operation(sign, _read(node.left, text, tier), _read(node.right, text, tier), bracketed)


def evaluate(expression: Expression, tier: int) -> Fraction:
    """Compute the exact value in a tier; raise ZeroDivisionError if a divisor is 0."""
    if isinstance(expression, Fraction):
        return expression
    return apply(expression.sign, evaluate(expression.left, tier), evaluate(expression.right, tier), tier)


def apply(sign: str, left: Fraction, right: Fraction, tier: int) -> Fraction:
    """Compute one operation by the sign's meaning in the tier."""
    return OPERATORS[MEANINGS[tier][sign]](left, right)


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
