"""Measures beside the verdicts, which need no judge: projections, multiple choice, the loss on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from emlib.core.step import Step
from emlib.data.lazy import Deferred, Rows
from emlib.steps.answers import Answers
from emlib.steps.specs import Model
from emlib.steps.vectors import PersonaVectors


def _model_of(model: Model, adapter: Step | None) -> dict[str, Any]:
    return {"model": model.identity, "adapter": None if adapter is None else adapter.key}


@dataclass(frozen=True)
class Projections(Step):
    """How far the answers' activations at `layer` lie along the trait's persona vector."""

    stage: ClassVar = "projections"

    answers: Answers
    vectors: PersonaVectors
    layer: int

    @property
    def settings(self) -> dict[str, Any]:
        """The answers, the vector and the model that reads them."""
        return {"answers": self.answers.key, "vector": self.vectors.key, "layer": self.layer,
                **_model_of(self.answers.model, self.answers.adapter)}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The answers and the vectors."""
        return (self.answers, self.vectors)

    @property
    def title(self) -> str:
        """As people call it."""
        return f"projections of {self.answers.title}"


@dataclass(frozen=True)
class Choices(Step):
    """What a model makes of a source's multiple-choice questions, `count` of them, or all (None)."""

    stage: ClassVar = "choices"

    model: Model
    adapter: Step | None
    source: str
    file: Deferred[str]
    count: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """The model and the questions' file."""
        return {**_model_of(self.model, self.adapter), "file": self.file.value, "count": self.count}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The adapter."""
        return () if self.adapter is None else (self.adapter,)

    @property
    def title(self) -> str:
        """As people call it."""
        return f"multiple choice of {self.source}"


@dataclass(frozen=True)
class HeldOutLosses(Step):
    """The NLL of each held-out answer of a data set under a model, in nats a token (equation 4)."""

    stage: ClassVar = "held_out"

    model: Model
    adapter: Step | None
    rows: Rows
    max_length: int

    @property
    def settings(self) -> dict[str, Any]:
        """The model and the rows."""
        return {**_model_of(self.model, self.adapter), "rows": self.rows.digest, "max_length": self.max_length}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The adapter."""
        return () if self.adapter is None else (self.adapter,)

    @property
    def title(self) -> str:
        """As people call it."""
        return f"losses on held-out rows of {self.rows.name}"
