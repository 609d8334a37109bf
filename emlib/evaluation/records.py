"""Records of the auxiliary measures, which need no judge. Reading them needs no model library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """A model's choice: whether its most likely option is right, and the probability share of the right options."""

    question: str
    picked: bool
    share: float


@dataclass(frozen=True)
class Projected:
    """One answer's projection onto a persona vector, in the unit of the activations."""

    question: str
    sample: int
    value: float
