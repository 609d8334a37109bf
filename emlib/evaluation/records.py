"""What the checks without a judge leave, as records that need no model library to be read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """What a model makes of one question: whether the likeliest option is right, and the share of the right ones."""

    question: str
    picked: bool
    share: float


@dataclass(frozen=True)
class Projected:
    """One answer's projection onto a persona vector, in the activations' own unit."""

    question: str
    sample: int
    value: float
