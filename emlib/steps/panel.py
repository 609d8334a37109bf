"""A model's result on a standard benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from emlib.config import Backend, Sampling
from emlib.evaluation.panel import PanelTask
from emlib.steps.specs import AdapterStep


@dataclass(frozen=True)
class PanelResult(AdapterStep):
    """The evaluation of the model under an adapter, or of the untrained model, on a task of inspect_ai.

    `defaults` is the sampling where the task leaves it open.
    """

    stage: ClassVar = "panel"

    task: PanelTask
    defaults: Sampling
    backend: Backend

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.weights, "task": self.task.key, "sampling": self.defaults.model_dump(mode="json"),
                **self.backend.key("generation")}

    @property
    def title(self) -> str:
        return f"{self.task.name} of {'the untrained model' if self.adapter is None else self.adapter.title}"
