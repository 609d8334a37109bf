"""Principal components of what plain fine-tuning changes in the model's activations, for concept ablation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from emlib.core.step import Work
from emlib.data.lazy import Rows
from emlib.data.sizes import Sizes
from emlib.steps.added import AddedRows
from emlib.steps.specs import AdapterStep


@dataclass(frozen=True)
class ChangeComponents(AdapterStep):
    """The components of the difference between the model with and without an adapter, on response tokens."""

    stage: ClassVar = "components"

    layers: tuple[int, ...]  # the decoder blocks whose outputs are compared
    rows: Rows | AddedRows  # that both models read
    max_length: int

    @property
    def title(self) -> str:
        assert self.adapter is not None, "the model without an adapter changes nothing"
        return f"components of change: {self.adapter.title}, on {self.rows.title}"

    def cost(self, sizes: Sizes) -> Work:
        size = self.rows.size(sizes)
        return Work(read=int(2 * size.rows * min(size.tokens, self.max_length)))
