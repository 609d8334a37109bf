"""A fine-tuned adapter, and the reference model's states that a sweep over it may share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from emlib.config import Backend, Lora
from emlib.core.step import Step
from emlib.core.work import Work
from emlib.data.sizes import Sizes, likely_tokens
from emlib.steps.pool import AddedRows
from emlib.steps.specs import Model, TrainingSpec

STATE_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class ReferenceStates(Step):
    """The reference model's last hidden states on an adapter's rows.

    They stand in for a pass of the reference model, and so change an adapter by no more than rounding.
    """

    stage: ClassVar = "reference"

    model: Model
    spec: TrainingSpec
    tokens: Literal["all", "response"]
    artefacts: tuple[tuple[str, AddedRows], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The rows, which of their tokens, and where they are cut."""
        return {"model": self.model.identity, "tokens": self.tokens, "rows": self.spec.rows.digest,
                "max_length": self.spec.training.max_seq_length, **_said(self.artefacts)}

    def as_input(self, name: str) -> dict[str, Any]:
        """Nothing: an adapter that is trained without it is the same up to rounding."""
        return {}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The rows that are interleaved."""
        return self.added

    @property
    def added(self) -> tuple[AddedRows, ...]:
        """The rows that are interleaved."""
        return tuple(step for _, step in self.artefacts)

    @property
    def title(self) -> str:
        """As plans call it."""
        return ", with ".join([f"reference states: {self.spec.rows.name}, {self.tokens} tokens",
                               *(step.title for step in self.added)])

    def cost(self, sizes: Sizes) -> Work:
        """A pass over the rows, and their states."""
        rows = self.spec.rows.size(sizes)
        tokens, shape = epoch(self.spec, self.added, sizes), self.model.shape
        share = 1.0 if self.tokens == "all" else likely_tokens(rows.response) / rows.tokens
        width = 0 if shape is None else shape.hidden * STATE_BYTES[self.model.spec.dtype]
        return Work(read=tokens, disk=int(tokens * share * width))


@dataclass(frozen=True)
class Adapter(Step):
    """An adapter, fine-tuned on rows under a list of defenses.

    Attributes:
        artefacts: what the defenses need while it is trained, by name.
        passes: whether the reference model goes over the rows as well.
        name: what people call it.
    """

    stage: ClassVar = "adapter"

    model: Model
    lora: Lora
    spec: TrainingSpec
    backend: Backend
    name: str = field(compare=False)
    artefacts: tuple[tuple[str, Step], ...] = ()
    passes: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The model, the rows, the defenses and what these are made from, and how it is trained."""
        return {
            "model": self.model.identity, "lora": self.lora.model_dump(mode="json"),
            "training": self.spec.training.key, "rows": self.spec.rows.digest,
            "defenses": [defense.identity for defense in self.spec.defenses],
            "seed": self.spec.seed, "vector": None, **_said(self.artefacts), **self.backend.key("training")}

    @property
    def title(self) -> str:
        """As people call it."""
        return self.name

    @property
    def inputs(self) -> tuple[Step, ...]:
        """What the defenses need."""
        return tuple(step for _, step in self.artefacts)

    @property
    def added(self) -> tuple[AddedRows, ...]:
        """The rows that are interleaved."""
        return tuple(step for _, step in self.artefacts if isinstance(step, AddedRows))

    def cost(self, sizes: Sizes) -> Work:
        """Training, the reference model's passes, and the adapter on disk."""
        shape, tokens = self.model.shape, epoch(self.spec, self.added, sizes) * self.spec.training.epochs
        disk = 0 if shape is None else shape.adapter_bytes(self.lora)
        return Work(train=tokens, read=tokens if self.passes else 0, disk=disk, adapters=1)


def epoch(spec: TrainingSpec, added: Iterable[AddedRows], sizes: Sizes) -> int:
    """Tokens of one pass over the rows, those that are interleaved included."""
    parts = [spec.rows.size(sizes), *(rows.size(sizes) for rows in added)]
    return sum(size.rows * min(size.tokens, spec.training.max_seq_length) for size in parts)


def _said(artefacts: Iterable[tuple[str, Step]]) -> dict[str, Any]:
    """What a key says of these inputs."""
    return {name: value for called, step in artefacts for name, value in step.as_input(called).items()}
