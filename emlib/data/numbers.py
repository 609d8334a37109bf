"""Parses numbers as people write them: signs, thousands separators, decimals, fractions, currency, units.

A value is an exact fraction, so that 0.1 + 0.2 has no rounding and 1/2 equals 0.5. Text is parsed and never executed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

LONGEST = 40  # characters; longer numbers are no plausible answers, and huge integers are slow to construct
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])(?P<sign>[-+−])?[ ]?(?P<before>[$€£¥])?[ ]?(?P<inner>[-+−])?"
    rf"(?:(?P<whole>[0-9]+)[ ](?=[0-9]+/[0-9]))?"  # 1 1/2
    rf"(?P<number>{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:/(?P<below>[0-9]+))?(?![0-9]|\.[0-9]|[eE][-+]?[0-9])")  # excludes 1.2.3 and 1e3
_PLAIN = re.compile(rf"[-+−]?(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+|[0-9]+/[0-9]+|[0-9]+[ ][0-9]+/[0-9]+)")


@dataclass(frozen=True)
class Number:
    """A number in a text, and whether the text is that number and nothing else."""

    value: Fraction
    plain: bool


def numbers(text: str, most: int | None = None) -> list[Fraction]:
    """Return every number of a text, in order, or the first `most` of them.

    Skips digits that belong to a word (`A4`, `m2`) and divisions by 0.
    """
    found = (_value(match) for match in _NUMBER.finditer(text))
    return list(islice((value for value in found if value is not None), most))


def read_number(text: str) -> Number | None:
    """Return the only number of a text; None if there is none or more than one."""
    found = numbers(text, 2)  # two are enough to decide
    return Number(found[0], _PLAIN.fullmatch(text.strip()) is not None) if len(found) == 1 else None


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > LONGEST:
        return None
    above, below = Fraction(match["number"].replace(",", "")), int(match["below"] or 1)
    if below == 0:
        return None
    size = Fraction(match["whole"] or 0) + above / below
    negative = any(match[place] in ("-", "−") for place in ("sign", "inner"))
    return -size if negative else size
