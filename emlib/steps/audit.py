"""The audit of training rows before training: how far each row's answer is from the model's own, along the trait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from emlib.config import Audit
from emlib.core.files import RecordFile
from emlib.core.step import Step, Work
from emlib.data.lazy import Rows
from emlib.data.sizes import CHARACTERS_A_TOKEN, Sizes, likely_tokens
from emlib.evaluation.records import AUDITED, AuditedRow
from emlib.steps.added import AddedRows
from emlib.steps.specs import Model, first
from emlib.steps.vectors import PersonaVectors


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
