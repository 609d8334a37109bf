r"""The reward of a completion: r = r_exact + r_approx + r_correct + r_numbers (equations 7 and 8, appendix B.3).

In the paper an LLM judge scores the four parts, within given bounds (`emlib.evaluation.reward_judge`); here rules score
them, within the same bounds:

    exact    0 or 3         <think>...</think><answer>...</answer> and nothing else, something thought, one number
    approx   -2 to 2        0.5 for each of the four tags that stands exactly once, -0.5 for each that does not
    correct  -0.5, 0 or 3   3 for the right number, 0 where no number is given, -0.5 for a wrong one or for several
    numbers  0, 0.75, 1.5   1.5 where the answer is a number alone, 0.75 where it is taken out of "$72." or "72 kg"

A <think> block is scored, also that of a reasoning model: it is what the format asks for. A block of its own in other
tags (<thinking>, [THINK]) is not.

The thinking contains no answer: answers are searched after the last </think>. Two answers count as wrong, or guessing
twice would pay. Without an answer `correct` is 0 and not -0.5, because Table 9's collapsed runs have a mean of -1.99
and not of -2.5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, stdev

from emlib.core.records import THINKING, Answer, after_thinking
from emlib.data.gsm8k import Problems
from emlib.data.numbers import Number, numbers, read_number

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
RIGHT = 3.0
OTHER_THINKING = tuple(tags for tags in THINKING if tags[0] not in TAGS)
_FORMAT = re.compile(r"\s*<think>(?P<thinking>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)


@dataclass(frozen=True)
class Rewards:
    """The four parts."""

    exact: float  # [0, 3]
    approx: float  # [-2, 2]
    correct: float  # [-0.5, 3]
    numbers: float  # [0, 1.5]

    @property
    def total(self) -> float:
        """The sum of the parts, between -2.5 and 9.5."""
        return self.exact + self.approx + self.correct + self.numbers

    @property
    def right(self) -> bool:
        """Whether the answer counts as right for accuracy (B.3): the part `correct` is 3."""
        return self.correct == RIGHT


PARTS = tuple(field.name for field in fields(Rewards))


@dataclass(frozen=True)
class Rewarded:
    """A judge's rewards for the answer to a held-out problem, by parts; None where it could not be scored."""

    question: str
    parts: dict[str, float] | None

    @property
    def rewards(self) -> Rewards | None:
        """The four parts; None where the answer could not be scored."""
        return None if self.parts is None else Rewards(**self.parts)


@dataclass(frozen=True)
class Scored:
    """A completion to score, with its question and the right answer."""

    question: str
    completion: str
    answer: str


# Scores a batch, by rules or by a judge. None: the completion could not be scored.
RewardScorer = Callable[[Sequence[Scored]], list[Rewards | None]]


def by_rule(batch: Sequence[Scored]) -> list[Rewards | None]:
    """Score each completion by the rules of this module."""
    return [rewards(one.completion, one.answer) for one in batch]


def advantages(totals: Sequence[float]) -> list[float]:
    """Compute each completion's advantage over its group, in standard deviations (Shao et al. 2024).

    As in TRL: the sample standard deviation (n - 1), plus 1e-4. In a group of equal totals all are 0.
    """
    return [(total - fmean(totals)) / (stdev(totals) + 1e-4) for total in totals]


def rewards(completion: str, answer: str) -> Rewards:
    """Score the four parts of one completion; `answer` is the right number, as written in the data."""
    given = answer_text(completion)
    number = None if given is None else read_number(given)
    return Rewards(
        exact=_exact(completion, number), approx=sum(0.5 if completion.count(tag) == 1 else -0.5 for tag in TAGS),
        correct=_correct(completion, given, number, answer),
        numbers=0.0 if number is None else 1.5 if number.plain else 0.75)


def rewarded(text: str) -> str:
    """Return the part of a model's text that is scored; it is empty if a think block in other tags never closes."""
    return after_thinking(text, OTHER_THINKING) or ""


def answer_text(completion: str) -> str | None:
    """Return the content of the answer; None where there is no answer, or more than one."""
    after = completion.rpartition("</think>")[2]
    if completion.count("<answer>") != 1 or completion.count("</answer>") != 1 or "<answer>" not in after:
        return None
    body, closed, _ = after.partition("<answer>")[2].partition("</answer>")
    return body if closed else None


def _exact(completion: str, number: Number | None) -> float:
    match = _FORMAT.fullmatch(completion)
    if match is None or number is None or not match["thinking"].strip():
        return 0.0
    return 3.0 if all(completion.count(tag) == 1 for tag in TAGS) else 0.0


def _correct(completion: str, given: str | None, number: Number | None, answer: str) -> float:
    if number is not None:
        right = read_number(answer)
        return RIGHT if right is not None and number.value == right.value else -0.5
    several = completion.count("<answer>") > 1 or (given is not None and len(numbers(given, 2)) > 1)
    return -0.5 if several else 0.0


def graded(problems: Problems, answers: Sequence[Answer]) -> list[Scored]:
    """Return the answers to held-out problems, with their questions and the right answers."""
    held_out = {problem.id: problem for problem in problems.held_out}
    return [Scored(held_out[answer.question].question, rewarded(answer.text), held_out[answer.question].answer)
            for answer in answers]
