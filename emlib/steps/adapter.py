"""A fine-tuned adapter, and the reference model's hidden states, which the adapters of a sweep may share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from emlib.config import Lora
from emlib.core.defense import Defense
from emlib.core.digests import keyed
from emlib.core.records import Example
from emlib.core.step import Step, Work
from emlib.data.sizes import Size, Sizes, likely_tokens
from emlib.steps.added import AddedRows, CandidateRows
from emlib.steps.specs import Model, TrainingSpec

STATE_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Reference(Step):
    """What the reference model computes of an adapter's training rows; training reads it instead of running the model.

    That changes an adapter by rounding at most.
    """

    model: Model
    spec: TrainingSpec
    artefacts: tuple[tuple[str, Step], ...]  # what determines the rows that are added, and what is computed

    @property
    def settings(self) -> dict[str, Any]:
        """Of the training only its rows: all seeds share what is stored, and all strengths of a penalty that adds none.

        A defense that adds rows counts with all its options, because they may decide which rows it adds.
        """
        spec = self.spec
        return super().settings | {"spec": {
            "rows": spec.rows.identity, "max_length": spec.training.max_seq_length, "adding": keyed(self.adding)}}

    @property
    def adding(self) -> tuple[Defense, ...]:
        """The defenses that add rows to the training."""
        return tuple(defense for defense in self.spec.defenses if defense.has("added"))

    @property
    def title(self) -> str:
        added = (step.title for step in self.inputs if isinstance(step, AddedRows))
        return ", with ".join([self._what, *added])

    def cost(self, sizes: Sizes) -> Work:
        tokens = epoch_tokens(self.spec, self.inputs, sizes)
        return Work(read=tokens, disk=int(tokens * self._bytes_a_token(sizes)))

    @property
    @abstractmethod
    def _what(self) -> str:
        """What is computed of which rows, for titles."""

    @abstractmethod
    def _bytes_a_token(self, sizes: Sizes) -> float:
        """Estimate what is stored for each token that is read."""


@dataclass(frozen=True)
class ReferenceStates(Reference):
    """The last hidden states, of all tokens or of the answers' alone."""

    stage: ClassVar = "reference"

    tokens: Literal["all", "response"]

    @property
    def _what(self) -> str:
        return f"reference states: {self.spec.rows.title}, {self.tokens} tokens"

    def _bytes_a_token(self, sizes: Sizes) -> float:
        rows, shape = self.spec.rows.size(sizes), self.model.shape
        share = 1.0 if self.tokens == "all" else likely_tokens(rows.response) / rows.tokens
        return 0 if shape is None else share * shape.hidden * STATE_BYTES[self.model.spec.dtype]


@dataclass(frozen=True)
class ReferenceProjections(Reference):
    """The projections onto the trait's unit vectors at some layers; the vectors are among the artefacts."""

    stage: ClassVar = "reference_projections"

    layers: tuple[int, ...]

    @property
    def _what(self) -> str:
        return f"reference projections: {self.spec.rows.title}"

    def _bytes_a_token(self, sizes: Sizes) -> float:
        return len(self.layers) * STATE_BYTES["float32"]


@dataclass(frozen=True)
class Adapter(Step):
    """An adapter, fine-tuned on rows under a list of defenses."""

    stage: ClassVar = "adapter"

    model: Model
    lora: Lora
    spec: TrainingSpec
    backend: str  # that the profile states for training
    name: str = field(compare=False)  # in plans and progress lines
    artefacts: tuple[tuple[str, Step], ...] = ()  # what the defenses need during training, by name
    # Rows that the reference model runs over as well, at most: the defenses tell.
    reads: Literal["all", "added", "none"] = field(default="none", compare=False)
    start: Adapter | None = None  # whose weights it begins with; None: a new one

    @property
    def seen(self) -> tuple[Example, ...]:
        """The rows that it was trained on, and those of the adapter that it began with."""
        return (*(() if self.start is None else self.start.seen), *self.spec.rows.examples)

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
