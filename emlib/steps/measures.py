"""Auxiliary measures, which need no judge: projections, multiple choice, losses on held-out rows, benchmarks.

One is taken before training: the audit of training rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from emlib.config import Audit, Sampling
from emlib.core.files import RecordFile
from emlib.core.records import with_clusters
from emlib.core.step import Step, Work
from emlib.data.lazy import Deferred, Rows
from emlib.data.sizes import CHARACTERS_A_TOKEN, Sizes, likely_tokens
from emlib.evaluation.panel import PanelTask
from emlib.evaluation.records import AUDITED, AnswerProjection, AuditedRow, Choice
from emlib.steps.added import AddedRows
from emlib.steps.answers import Answers
from emlib.steps.specs import AdapterStep, Model, first
from emlib.steps.vectors import PersonaVectors


@dataclass(frozen=True)
class Projections(Step):
    """The projections of the answers' activations at `layer` onto the trait's persona vector.

    Their means are over the same tokens as the vector's (`extraction.end_of_turn`).
    """

    stage: ClassVar = "projections"
    records: ClassVar = RecordFile("projections.jsonl", AnswerProjection)

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
    version: ClassVar = 2
    records: ClassVar = RecordFile("choices.jsonl", Choice)

    source: str = field(compare=False)
    file: Deferred[str]  # its digest
    count: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """Version 2 scores options behind an empty think block; models whose template writes none keep their key."""
        return super().settings | {"version": self.version_where(self.model.spec.may_think)}

    @property
    def title(self) -> str:
        return f"multiple choice of {self.source}"


@dataclass(frozen=True)
class HeldOutLosses(AdapterStep):
    """The NLL of each held-out answer of a data set under a model, in nats per token (equation 4)."""

    stage: ClassVar = "held_out"
    version: ClassVar = 2

    rows: Rows
    max_length: int

    @property
    def settings(self) -> dict[str, Any]:
        """Version 2 leaves an empty think block out of losses; models whose template writes none keep their key."""
        return super().settings | {"version": self.version_where(self.model.spec.may_think)}

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


@dataclass(frozen=True)
class RowAudit(Step):
    """The projection difference of each row (Chen et al. 2025, on predicting shifts from data).

        d_i = (h(x_i, y_i) - mean_s h(x_i, y_is)) . e / |e|

    h is the base model's mean activation over an answer's tokens at a layer, e the trait's persona vector there, y_i
    the row's answer to its prompt x_i, and y_is the base model's own answers to it.
    """

    stage: ClassVar = "audit"
    records: ClassVar = RecordFile(AUDITED, AuditedRow)

    model: Model
    rows: Rows | AddedRows
    vectors: PersonaVectors
    spec: Audit
    backend: str  # that the profile states for sampling
    max_length: int
    count: int | None  # how many of the rows are audited, chosen by a fixed seed; None: all

    @property
    def settings(self) -> dict[str, Any]:
        """The number of rows that are audited: all of them, and a larger number than there are, is one audit."""
        return super().settings | {"count": min(self.count or self.rows.count, self.rows.count)}

    @property
    def title(self) -> str:
        return f"audit of {self.rows.title}" + ("" if self.count is None else f", at most {self.count} rows")

    def cost(self, sizes: Sizes) -> Work:
        """Estimate the base model's own answers, and a forward pass over each answer, given or its own."""
        size = first(self.rows.size(sizes), self.count)
        own = size.rows * self.spec.samples
        written, prompt = own * self.spec.sampling.max_new_tokens, likely_tokens(size.prompt)
        passes = size.rows * min(size.tokens, self.max_length) + own * prompt + written
        return Work(read=int(size.rows * prompt + passes), write=written, disk=int(written * CHARACTERS_A_TOKEN))
