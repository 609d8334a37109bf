"""Auxiliary measures, which need no judge: projections, multiple choice, losses on held-out rows, benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from emlib.config import Sampling
from emlib.core.files import RecordFile
from emlib.core.records import with_clusters
from emlib.core.step import Step
from emlib.data.lazy import Deferred, Rows
from emlib.evaluation.panel import PanelTask
from emlib.evaluation.records import Choice, Projected
from emlib.steps.answers import Answers
from emlib.steps.specs import AdapterStep
from emlib.steps.vectors import PersonaVectors


@dataclass(frozen=True)
class Projections(Step):
    """The projections of the answers' activations at `layer` onto the trait's persona vector.

    Their means are over the same tokens as the vector's (`extraction.end_of_turn`).
    """

    stage: ClassVar = "projections"
    records: ClassVar = RecordFile("projections.jsonl", Projected)

    answers: Answers
    vectors: PersonaVectors
    layer: int

    @property
    def title(self) -> str:
        return f"projections of {self.answers.title}"

    def completed(self, records: list[Any]) -> list[Any]:
        return with_clusters(records, self.answers.evaluation.questions.all)


@dataclass(frozen=True)
class Choices(AdapterStep):
    """A model's choices in `count` of a source's multiple-choice questions, or in all (None)."""

    stage: ClassVar = "choices"
    records: ClassVar = RecordFile("choices.jsonl", Choice)

    source: str = field(compare=False)
    file: Deferred[str]  # its digest
    count: int | None

    @property
    def title(self) -> str:
        return f"multiple choice of {self.source}"


@dataclass(frozen=True)
class HeldOutLosses(AdapterStep):
    """The NLL of each held-out answer of a data set under a model, in nats per token (equation 4)."""

    stage: ClassVar = "held_out"

    rows: Rows
    max_length: int

    @property
    def title(self) -> str:
        return f"losses on held-out rows of {self.rows.title}"


@dataclass(frozen=True)
class PanelResult(AdapterStep):
    """The evaluation of the model under an adapter, or of the untrained model, on a task of inspect_ai."""

    stage: ClassVar = "panel"

    task: PanelTask
    defaults: Sampling  # where the task leaves it open
    backend: str  # that the profile states for sampling

    @property
    def title(self) -> str:
        return f"{self.task.name} of {'the untrained model' if self.adapter is None else self.adapter.title}"
