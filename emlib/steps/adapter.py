"""A fine-tuned adapter, and the reference model's hidden states, which the adapters of a sweep may share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from emlib.config import Backend, Lora
from emlib.core.defense import acting
from emlib.core.records import Example
from emlib.core.step import Step
from emlib.core.work import Work
from emlib.data.sizes import Size, Sizes, likely_tokens
from emlib.steps.added import AddedRows, CandidateRows
from emlib.steps.specs import Model, TrainingSpec

STATE_BYTES = {"bfloat16": 2, "float32": 4}
FEATURES_VERSION = 2  # in the keys of adapters with a penalty on steered features; raised when what it sees changes
CANDIDATES_VERSION = 2  # in the keys of adapters that choose rows while others are filtered; version 1 chose too few


@dataclass(frozen=True)
class ReferenceStates(Step):
    """The reference model's last hidden states on an adapter's training rows.

    Training reads them instead of running the reference model. That changes an adapter by rounding at most.
    """

    stage: ClassVar = "reference"

    model: Model
    spec: TrainingSpec
    tokens: Literal["all", "response"]
    artefacts: tuple[tuple[str, AddedRows], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": self.model.identity, "tokens": self.tokens, "rows": self.spec.rows.digest,
                "max_length": self.spec.training.max_seq_length, **_keys_of(self.artefacts)}

    def as_input(self, name: str) -> dict[str, Any]:
        """Return nothing: an adapter that is trained without the states is the same up to rounding."""
        return {}

    @property
    def title(self) -> str:
        return ", with ".join([f"reference states: {self.spec.rows.title}, {self.tokens} tokens",
                               *(step.title for step in self.inputs)])

    def cost(self, sizes: Sizes) -> Work:
        rows = self.spec.rows.size(sizes)
        tokens, shape = epoch_tokens(self.spec, self.inputs, sizes), self.model.shape
        share = 1.0 if self.tokens == "all" else likely_tokens(rows.response) / rows.tokens
        width = 0 if shape is None else shape.hidden * STATE_BYTES[self.model.spec.dtype]
        return Work(read=tokens, disk=int(tokens * share * width))


@dataclass(frozen=True)
class ReferenceProjections(Step):
    """The reference model's projections onto the trait's unit vectors, of an adapter's training rows.

    As with `ReferenceStates`, an adapter that is trained with them is the same up to rounding.
    """

    stage: ClassVar = "reference_projections"

    model: Model
    spec: TrainingSpec
    layers: tuple[int, ...]
    artefacts: tuple[tuple[str, Step], ...]  # the vectors, and interleaved rows

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": self.model.identity, "layers": list(self.layers), "rows": self.spec.rows.digest,
                "max_length": self.spec.training.max_seq_length, **_keys_of(self.artefacts)}

    def as_input(self, name: str) -> dict[str, Any]:
        """Return nothing, as `ReferenceStates` does."""
        return {}

    @property
    def title(self) -> str:
        added = (step.title for step in self.inputs if isinstance(step, AddedRows))
        return ", with ".join([f"reference projections: {self.spec.rows.title}", *added])

    def cost(self, sizes: Sizes) -> Work:
        tokens = epoch_tokens(self.spec, self.inputs, sizes)
        return Work(read=tokens, disk=tokens * len(self.layers) * STATE_BYTES["float32"])


@dataclass(frozen=True)
class Adapter(Step):
    """An adapter, fine-tuned on rows under a list of defenses."""

    stage: ClassVar = "adapter"

    model: Model
    lora: Lora
    spec: TrainingSpec
    backend: Backend
    name: str = field(compare=False)  # in plans and progress lines
    artefacts: tuple[tuple[str, Step], ...] = ()  # what the defenses need during training, by name
    reads: Literal["all", "added", "none"] = "none"  # rows that the reference model runs over as well, at most
    start: Adapter | None = None  # whose weights it begins with; None: a new one

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "model": self.model.identity, "lora": self.lora.model_dump(mode="json"),
            "training": self.spec.training.key, "rows": self.spec.rows.digest,
            "defenses": [defense.identity for defense in self.spec.defenses],
            "seed": self.spec.seed, "vector": None,  # keys of the first edition had it
            **_keys_of(self.artefacts), **self.backend.key("training"),
            **({"features_version": FEATURES_VERSION} if self._penalises_steered_features else {}),
            **({"candidates_version": CANDIDATES_VERSION} if self._chooses_beside_filtered else {}),
            **({} if self.spec.steps is None else {"steps": self.spec.steps}),
            **({} if self.start is None else {"start": self.start.key})}

    @property
    def seen(self) -> tuple[Example, ...]:
        """The rows that it was trained on, and those of the adapter that it began with."""
        return (*(() if self.start is None else self.start.seen), *self.spec.rows.examples)

    @property
    def _penalises_steered_features(self) -> bool:
        """Whether one defense steers the layers whose features another one penalises."""
        defenses = acting(self.spec.defenses)
        return all(any(defense.has(hook) for defense in defenses) for hook in ("added_vectors", "reads_layers"))

    @property
    def _chooses_beside_filtered(self) -> bool:
        """Whether rows are chosen during training while another defense leaves out fine-tuning rows."""
        return any(isinstance(step, CandidateRows) for step in self.inputs) and any(
            defense.has("filtered") for defense in acting(self.spec.defenses))

    @property
    def title(self) -> str:
        return self.name

    def cost(self, sizes: Sizes) -> Work:
        epochs, own = _epochs(self.spec, self.inputs, sizes), epoch_tokens(self.spec, (), sizes)
        tokens = epoch_tokens(self.spec, self.inputs, sizes)
        read = {"all": tokens, "added": tokens - own, "none": 0}[self.reads]
        disk = self.model.adapter_bytes(self.lora)
        scored = sum(step.scored(sizes) for step in self.inputs if isinstance(step, CandidateRows))
        readings = Work() if self.spec.monitor is None else self.spec.monitor.cost(self.spec, sizes)
        return readings + Work(train=int(tokens * epochs), read=scored + int(read * epochs), disk=disk, adapters=1)


@dataclass(frozen=True)
class KeptAdapter(Step):
    """An adapter as it was after `share` of its training steps.

    It is kept while the adapter is trained. If that was trained without keeping it, it is trained again up to there.
    """

    stage: ClassVar = "kept_adapter"

    adapter: Adapter
    share: float

    @property
    def settings(self) -> dict[str, Any]:
        """The adapter, which determines all of its steps, and the share of them."""
        return {"adapter": self.adapter.key, "share": self.share}

    @property
    def made_with(self) -> Step:
        """The adapter, whose training keeps this one."""
        return self.adapter

    @property
    def title(self) -> str:
        return f"{self.adapter.title} at {self.share:.4g} of its steps"

    def cost(self, sizes: Sizes) -> Work:
        return Work(disk=self.adapter.model.adapter_bytes(self.adapter.lora))


def epoch_tokens(spec: TrainingSpec, inputs: Iterable[Step], sizes: Sizes) -> int:
    """Estimate the tokens of one epoch, including the interleaved rows among the inputs."""
    return sum(size.rows * min(size.tokens, spec.training.max_seq_length) for size in _parts(spec, inputs, sizes))


def _epochs(spec: TrainingSpec, inputs: Sequence[Step], sizes: Sizes) -> float:
    """Estimate the number of epochs, where the number of steps is given."""
    if spec.steps is None:
        return spec.training.epochs
    return spec.steps * spec.training.rows_per_step / max(1, sum(size.rows for size in _parts(spec, inputs, sizes)))


def _parts(spec: TrainingSpec, inputs: Iterable[Step], sizes: Sizes) -> list[Size]:
    return [spec.rows.size(sizes), *(step.size(sizes) for step in inputs if isinstance(step, AddedRows))]


def _keys_of(artefacts: Iterable[tuple[str, Step]]) -> dict[str, Any]:
    """Return the part of a key that identifies these inputs."""
    return {name: value for called, step in artefacts for name, value in step.as_input(called).items()}
