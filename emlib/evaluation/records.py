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


AUDITED = "audit.jsonl"  # the file of `AuditedRow` records in an artefact


@dataclass(frozen=True)
class AuditedRow:
    """A training row's projection onto a persona vector, and that of the base model's own answers to its prompt.

    Attributes:
        place: the row's place among the training rows.
        given: the projection of the row's answer; None if the row cannot be encoded.
        own: the mean projection of the model's own answers; None if there is none.
        answer: the first of these.
    """

    place: int
    given: float | None
    own: float | None
    answer: str

    @property
    def difference(self) -> float | None:
        """How far training on the row moves along the vector; None without both projections."""
        return None if self.given is None or self.own is None else self.given - self.own
