"""Records of measures that need no judge, also while a model trains. Reading them needs no model library."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from emlib.core.files import read_appended
from emlib.core.records import NOT_STORED

READINGS = "monitor.jsonl"
MONITOR = "monitor"  # the fact of an adapter that has the key of what its monitor reads


@dataclass(frozen=True)
class Choice:
    """A model's choice: whether its most likely option is right, and the probability share of the right options."""

    question: str
    picked: bool
    share: float


@dataclass(frozen=True)
class AnswerProjection:
    """One answer's projection onto a persona vector, in the unit of the activations."""

    question: str
    sample: int
    value: float
    stated_cluster: str | None = field(default=None, kw_only=True, metadata=NOT_STORED)


AUDITED = "audit.jsonl"  # the file of `AuditedRow` records in an artefact


@dataclass(frozen=True)
class AuditedRow:
    """A training row's projection onto a persona vector, and that of the base model's own answers to its prompt."""

    place: int  # among the training rows
    given: float | None  # of the row's answer; None if the row cannot be encoded
    own: float | None  # the mean over the model's own answers; None if there is none
    answer: str  # the first of these

    @property
    def difference(self) -> float | None:
        """How far training on the row moves along the vector; None without both projections."""
        return None if self.given is None or self.own is None else self.given - self.own


@dataclass(frozen=True)
class Reading:
    """A monitor's reading of the model after `step`; that of step 0 is of the base model."""

    step: int
    drift: dict[str, float]  # by trait and layer: the mean change of general answers' projection onto the unit vector
    losses: dict[str, float]  # of rows that are not trained on, `held_out` and `pool`, in nats per token of an answer
    kl: float | None  # KL(model || base model) on the general answers, in nats per token; None: no answers are read
    seconds: float  # of the reading

    @property
    def first(self) -> float | None:
        """The drift along the first vector; None if none is read."""
        return next(iter(self.drift.values()), None)


def read_readings(folder: Path) -> list[Reading]:
    """Read a run's readings; empty if it was not monitored."""
    return read_appended(folder / READINGS, Reading)
