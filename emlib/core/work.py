"""The estimated work of a step, in tokens, requests and bytes; a plan adds these up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class JudgeWork:
    """Requests to one judge, which is given by its settings, and the tokens that it reads for them."""

    judge: Any
    requests: int
    read: int


@dataclass(frozen=True)
class Work:
    """An amount of work. Tokens are tokens of the study's model, except for `judged`."""

    train: int = 0  # tokens that the model is trained on
    read: int = 0  # tokens of forward passes without training
    write: int = 0  # sampled tokens, at most: answers are counted at their maximum length
    disk: int = 0  # bytes that are stored, at most
    adapters: int = 0  # the number of adapters that are trained
    sets: int = 0  # the number of sets of answers that are sampled
    verdicts: int = 0  # answers that the judge scores, each with two requests
    judged: int = 0  # tokens that a judge reads for these, if it is a language model
    others: tuple[JudgeWork, ...] = ()  # requests beside these: to judges of single question sets, for their metrics

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Work)))


def total(works: Iterable[Work]) -> Work:
    """Return the sum of all amounts of work."""
    return sum(works, Work())
