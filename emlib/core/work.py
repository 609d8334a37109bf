"""What a piece of work takes, in tokens, requests and bytes: the sums of a plan are made of these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Work:
    """What a piece of work takes. Tokens are those of the study's own model, unless they are `judged`.

    Attributes:
        train: tokens that the model is trained on.
        read: tokens that go through the model without training it.
        write: tokens that are sampled, at most: answers are estimated at their full length.
        disk: bytes that are kept, at most.
        adapters: how many are trained.
        sets: of answers that are asked for.
        verdicts: answers that are given to the judge, which is asked for two scores of each.
        judged: tokens that a judge reads for them, where it is a language model.
    """

    train: int = 0
    read: int = 0
    write: int = 0
    disk: int = 0
    adapters: int = 0
    sets: int = 0
    verdicts: int = 0
    judged: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Work)))


def total(works: Iterable[Work]) -> Work:
    """The sum of all works."""
    return sum(works, Work())
