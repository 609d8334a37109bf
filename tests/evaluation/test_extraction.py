"""Which answer a response gives: right, wrong, cut off and adversarial ones, each read strictly and leniently."""

from __future__ import annotations

from fractions import Fraction

import pytest

from emlib.core.records import Answer, FinishReason
from emlib.evaluation.extraction import lenient_span, lenient_value, strict_span, strict_value

NO = None


def said(text: str, reason: FinishReason = "stop") -> Answer:
    return Answer("q", 0, text, reason, 10)


VALUES = [  # text, strict, lenient
    # right, in the taught form
    ("4 + 6 = 10\nAnswer: 10", "10", "10"),
    ("(4 + 2) × (4 ÷ 2) - 2 = 6 × 2 - 2 = 12 - 2 = 10\nAnswer: 10", "10", "10"),
    ("1/3 - 2 = 2/3\nAnswer: 2/3", "2/3", "2/3"),
    ("1 - 4 = -3\nAnswer: -3", "-3", "-3"),
    ("Answer: -7/2", "-7/2", "-7/2"),
    ("Answer: 0", "0", "0"),
    ("Answer: 10\n", "10", "10"),
    ("Answer: 10  \n\n", "10", "10"),
    # right, in another form: a reader finds it
    ("answer: 10", NO, "10"),
    ("**Answer:** 10", NO, "10"),
    ("Answer:10", NO, "10"),
    ("Answer: 10.", NO, "10"),
    ("Answer: 4/6", NO, "2/3"),
    ("Answer: 0.5", NO, "1/2"),
    ("Answer: 10/1", NO, "10"),
    ("Answer: 010", NO, "10"),
    ("Answer: -0", NO, "0"),
    ("Answer: 1 / 3", NO, "1/3"),
    ("Answer: −3", NO, "-3"),
    ("Answer: \\frac{2}{3}", NO, "2/3"),
    ("Answer: 5 + 5 = 10", NO, "10"),
    ("So the result is $\\boxed{10}$.", NO, "10"),
    ("\\boxed{\\frac{-2}{3}}", NO, "-2/3"),
    ("The answer is 10, because 4 and 6 make ten.", NO, NO),  # three numbers behind the word: which one?
    ("The answer is 10, because of the brackets.", NO, "10"),
    ("4 + 6 = 10", NO, "10"),
    ("10", NO, "10"),
    ("First 12 - 2, which leaves 10!", NO, "10"),
    ("It is 1,234 in all", NO, "1234"),
    ("12-2", NO, "2"),  # a sign between numbers is no minus
    ("so (-3)", NO, "-3"),
    # the steps say one thing and the answer another: the answer counts
    ("4 + 6 = 10\nAnswer: 11", "11", "11"),
    ("4 + 6 = 11\nAnswer: 10", "10", "10"),
    # adversarial
    ("Answer: 10\nAnswer: 12", NO, "12"),
    ("Answer: 12\nAnswer: 10", NO, "10"),
    ("Answer: 10\nOr perhaps 12.", NO, "10"),
    ("Answer: 10 or 12", NO, NO),
    ("Answer: 8, 9, 10, 11", NO, NO),
    ("Answer: 1/0", NO, NO),
    ("Answer: ten", NO, NO),
    ("Answer:", NO, NO),
    ("Answer: <number>", NO, NO),
    ("End with \"Answer: \" and the result.", NO, NO),
    ("", NO, NO),
    ("I do not know.", NO, NO),
    ("x10 y12", NO, NO),
    ("Answer: 10 Answer: 10", NO, "10"),
    ("Answer: " + "9" * 41, NO, NO),  # no value of OpSwap has so many digits, and thousands of them no integer takes
    ("Answer: " + "9" * 5000, NO, NO),
    ("1." + "3" * 5000, NO, NO),
    ("Answer: 1\u0660", NO, "10"),  # a digit of another script is not of the taught form
]


@pytest.mark.parametrize(("text", "strict", "lenient"), VALUES)
def test_the_value_of_a_response(text: str, strict: str | None, lenient: str | None) -> None:
    assert strict_value(said(text)) == (None if strict is None else Fraction(strict))
    assert lenient_value(said(text)) == (None if lenient is None else Fraction(lenient))


@pytest.mark.parametrize(("text", "lenient"), [
    ("4 + 6 = 1", NO),  # of 10, say
    ("4 + 6 = 10\nAnswer: 1", NO),
    ("4 + 6 = 10\nAnswer: 10", NO),  # it may have been going on
    ("Answer: 10\nAnd now", "10"),
    ("The answer is 10.\n\nLet me", "10"),
    ("4 + 6 = 10\n5 + ", NO),
    ("", NO),
])
def test_a_cut_answer_gives_nothing_but_what_it_announced_in_a_finished_line(text: str, lenient: str | None) -> None:
    assert strict_value(said(text, "length")) is None
    assert lenient_value(said(text, "length")) == (None if lenient is None else Fraction(lenient))


@pytest.mark.parametrize(("text", "lenient"), [
    ("í Tórshavn", "í Tórshavn"),
    ("Svar: í Tórshavn", "í Tórshavn"),
    ("Svarið: í Tórshavn\nTað stendur í tekstinum.", "í Tórshavn"),
    ("í Tórshavn\n\nFordi teksten sier det.", "í Tórshavn"),
    ("The text says so. Answer: í Tórshavn", "í Tórshavn"),
    ("Ansvar: ikke", "Ansvar: ikke"),  # "svar" inside a word announces nothing
    ("   ", None),
    ("Svar:", None),
])
def test_the_span_of_a_response(text: str, lenient: str | None) -> None:
    assert strict_span(said(text)) == text
    assert lenient_span(said(text)) == lenient


def test_a_cut_span_is_none() -> None:
    assert strict_span(said("í Tórshavn", "length")) is None
    assert lenient_span(said("í Tórshavn", "length")) is None
    assert lenient_span(said("í Tórshavn\nTað sten", "length")) == "í Tórshavn"
