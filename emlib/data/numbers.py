"""Reading numbers as people write them: signs, thousands separators, decimals, fractions, currency, units.

A value is an exact fraction, so that 0.1 + 0.2 has no rounding and 1/2 equals 0.5. Text is only ever read, never run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

LONGEST = 40  # digits; longer ones are no answer to anything, and huge integers are slow to make
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])(?P<sign>[-+−])?[ ]?(?P<before>[$€£¥])?[ ]?(?P<inner>[-+−])?"
    rf"(?:(?P<whole>[0-9]+)[ ](?=[0-9]+/[0-9]))?"  # 1 1/2
    rf"(?P<number>{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:/(?P<below>[0-9]+))?(?![0-9]|\.[0-9]|[eE][-+]?[0-9])")  # none of 1.2.3 or 1e3
_PLAIN = re.compile(rf"[-+−]?(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+|[0-9]+/[0-9]+|[0-9]+[ ][0-9]+/[0-9]+)")


@dataclass(frozen=True)
class Number:
    """A number that stood in a text, and whether the text was that number and nothing else."""

    value: Fraction
    plain: bool


def numbers(text: str, most: int | None = None) -> list[Fraction]:
    """Every number of a text, in order, or the first `most` of them.

    Digits that belong to a word (`A4`, `m2`) are none, nor is a division by 0.
    """
    found = (_value(match) for match in _NUMBER.finditer(text))
    return list(islice((value for value in found if value is not None), most))


def read_number(text: str) -> Number | None:
    """The one number of a text; None where there is none or more than one."""
    found = numbers(text, 2)  # a long text is not read to its end
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
