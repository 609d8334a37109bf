"""Exact match on the benign tasks (section 4.3: 10 samples per question), and SQuAD's F1.

SQuAD's normalisation: lower case, no punctuation, no English articles, single spaces. It differs from the published
script for Unicode: composed and decomposed letters are equal, and punctuation is every character of a Unicode
punctuation category.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from emlib.core.records import Answer
from emlib.data.benign import Item
from emlib.evaluation.extraction import lenient_span, lenient_value, strict_span, strict_value
from emlib.evaluation.rates import Share, grouped, share_of
from emlib.evaluation.statistics import RESAMPLES


@dataclass(frozen=True)
class Mark:
    """The marks of one answer. `f1` is 0 to 1; None where the task has no words to compare."""

    question: str
    sample: int
    strict: bool
    lenient: bool
    f1: float | None = None


@dataclass(frozen=True)
class ExactMatchScore:
    """Shares of all requested answers, in percent. Intervals are clustered by question."""

    strict: Share
    lenient: Share
    f1: Share | None
    asked: int
    cut: int  # answers that reached the token limit; they stay in the denominator


def normalized(text: str) -> str:
    """Return SQuAD's normal form of an answer."""
    text = unicodedata.normalize("NFC", text).lower()
    text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def matches(span: str | None, golds: Sequence[str]) -> bool:
    """Return whether a span is one of the right answers, in normal form."""
    return span is not None and normalized(span) in map(normalized, golds)


def f1(span: str, golds: Sequence[str]) -> float:
    """Return the highest F1 over words among the right answers, 0 to 1."""
    return max(_f1(normalized(span).split(), normalized(gold).split()) for gold in golds)


def _f1(found: list[str], gold: list[str]) -> float:
    if not found or not gold:
        return float(found == gold)
    shared = (Counter(found) & Counter(gold)).total()
    return 2 * shared / (len(found) + len(gold))


def mark_value(answer: Answer, golds: Sequence[str]) -> Mark:
    """Mark an OpSwap answer against the right values."""
    right = {Fraction(gold) for gold in golds}
    return Mark(answer.question, answer.sample, strict_value(answer) in right, lenient_value(answer) in right)


def mark_span(answer: Answer, golds: Sequence[str]) -> Mark:
    """Mark an answer of extractive QA against the right spans. F1 is that of the whole response, even if it was cut."""
    return Mark(answer.question, answer.sample, matches(strict_span(answer), golds),
                matches(lenient_span(answer), golds), f1(answer.text, golds))


def mark(answers: Sequence[Answer], items: Sequence[Item], *, numbers: bool) -> list[Mark]:
    """Return one mark per answer, in their order; the right answers are values with `numbers`, else spans.

    What an answer thinks before it answers is not marked.
    """
    golds: Mapping[str, tuple[str, ...]] = {item.question.id: item.golds for item in items}
    of_one = mark_value if numbers else mark_span
    return [of_one(answer.without_thinking(), golds[answer.question]) for answer in answers]


def score(marks: Sequence[Mark], *, cut: int = 0, resamples: int = RESAMPLES) -> ExactMatchScore:
    """Compute mean strict and lenient exact match, and mean F1 where the task has it."""
    groups = grouped(lambda one: one.question, marks).values()

    def share(part: Callable[[Mark], float]) -> Share:
        return share_of([[part(one) for one in group] for group in groups], resamples=resamples)

    has_words = any(one.f1 is not None for one in marks)
    return ExactMatchScore(share(lambda one: one.strict), share(lambda one: one.lenient),
                           share(lambda one: one.f1 or 0.0) if has_words else None, len(marks), cut)
