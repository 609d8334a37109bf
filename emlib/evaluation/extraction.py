r"""Extraction of the final answer from a response: strictly, in the trained format, and leniently, in other formats.

OpSwap, strictly: the last line is `Answer: v`, the only such line, with `v` a whole number or a fraction in lowest
terms. Leniently: any number after the last "answer" or in the last `\boxed{}`, or else the last number of the text; of
a line that ends in an equation, what follows its last `=`. Decimals and fractions not in lowest terms count by value.

Extractive QA, strictly: the whole response. Leniently: its first line, or what follows "Answer:" or its Faroese or
Norwegian word.

A response that was cut at the token limit has no strict answer. Its lenient answer comes from its complete lines only,
for OpSwap only after an announcing word.
"""

from __future__ import annotations

import re
from fractions import Fraction

from emlib.core.records import Answer
from emlib.data.numbers import LONGEST

_TAUGHT = re.compile(r"^Answer: (-?\d+(?:/\d+)?)$", re.MULTILINE)
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?<![\w.])\d+(?:\.\d+)?(?:/\d+)?")
_ANNOUNCED = re.compile(r"\\boxed|\banswer\b", re.IGNORECASE)
_QA_ANNOUNCED = re.compile(r"\b(?:answer|svar|svarið|svaret)\s*:", re.IGNORECASE)
_SAME = [  # other ways to write a number, and markup around it
    (re.compile(r"[−–]"), "-"), (re.compile(r"⁄"), "/"), (re.compile(r"\*\*|\$|`"), ""),
    (re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}"), r"\1/\2"),
    (re.compile(r"(?<=\d),(?=\d{3}\b)"), ""), (re.compile(r"(?<=\d)\s*/\s*(?=\d)"), "/")]


def strict_value(answer: Answer) -> Fraction | None:
    """Return the value in the trained format, or None."""
    if answer.finish_reason == "length":
        return None
    text = answer.text.rstrip()
    found = list(_TAUGHT.finditer(text))
    if len(found) != 1 or found[0].end() != len(text):
        return None
    value = _value(found[0][1])
    return value if str(value) == found[0][1] else None  # 2/4, 07 and -0 are not in the trained format


def lenient_value(answer: Answer) -> Fraction | None:
    """Return the value in any recognised format, or None."""
    text = _finished(answer)
    for pattern, plain in _SAME:
        text = pattern.sub(plain, text)
    announced = list(_ANNOUNCED.finditer(text))
    if announced:
        behind = text[announced[-1].end():].strip().partition("\n")[0]
        numbers = _NUMBER.findall(behind.rpartition("=")[2])
        return _value(numbers[0]) if len(numbers) == 1 else None  # "10 or 12" answers nothing
    if answer.finish_reason == "length":
        return None
    numbers = _NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def strict_span(answer: Answer) -> str | None:
    """Return the whole response; None if it was cut at the token limit."""
    return None if answer.finish_reason == "length" else answer.text


def lenient_span(answer: Answer) -> str | None:
    """Return the text after the last "Answer:", or else the first line; None where that line is incomplete or empty."""
    text = _finished(answer).strip()
    announced = list(_QA_ANNOUNCED.finditer(text))
    span = (text[announced[-1].end():] if announced else text).strip().partition("\n")[0]
    return span or None


def _finished(answer: Answer) -> str:
    """Return the text without a last line that was cut."""
    return answer.text if answer.finish_reason == "stop" else answer.text.rpartition("\n")[0]


def _value(number: str) -> Fraction | None:
    if len(number) > LONGEST:
        return None
    try:
        top, _, bottom = number.partition("/")
        return Fraction(top) / Fraction(bottom or 1)
    except ZeroDivisionError:
        return None
