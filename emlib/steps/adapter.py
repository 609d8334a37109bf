"""A fine-tuned adapter, also as it was after a share of its training steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from emlib.config import Lora
from emlib.core.records import Example
from emlib.core.step import Step, Work
from emlib.data.sizes import Size, Sizes
from emlib.steps.added import AddedRows, CandidateRows
from emlib.steps.specs import Model, TrainingSpec


@dataclass(frozen=True)
class Adapter(Step):
    """An adapter, fine-tuned on rows under a list of defenses."""

    stage: ClassVar = "adapter"
    version: ClassVar = 2

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
    def settings(self) -> dict[str, Any]:
        """Version 2: the loss on rows that a defense holds out leaves an empty think block out, where there may be one.

        What other defenses do by losses is in the keys of what they need.
        """
        asks = any(defense.has("held_out") for defense in self.spec.defenses)
        return super().settings | {"version": self.version_where(asks and self.model.spec.may_think)}

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

    It is kept while the adapter is trained. If that was trained without keeping it, it is trained again up to the last
    one that is missing, and keeps the others on the way.
    """

    stage: ClassVar = "kept_adapter"

    adapter: Adapter
    share: float

    @property
    def made_with(self) -> tuple[Step, ...]:
        """The adapter, and those kept later, the last one first: a training up to each keeps this one, too."""
        return (self.adapter, *self.later)

    @property
    def later(self) -> tuple[KeptAdapter, ...]:
        """Those that are to be kept later in the same training, the last one first."""
        shares = sorted(self.adapter.spec.keep, reverse=True)
        return tuple(KeptAdapter(self.adapter, share) for share in shares if share > self.share)

    @property
    def title(self) -> str:
        return f"{self.adapter.title} at {self.share:.4g} of its steps"

    def cost(self, sizes: Sizes) -> Work:
        return Work(disk=self.adapter.model.adapter_bytes(self.adapter.lora))

    def again(self, sizes: Sizes) -> Work:
        """Estimate the work of training the adapter again up to this one, which is not monitored."""
        whole = replace(self.adapter, spec=replace(self.adapter.spec, monitor=None)).cost(sizes)
        return Work(train=int(self.share * whole.train), read=int(self.share * whole.read), adapters=1)


def epoch_tokens(spec: TrainingSpec, inputs: Iterable[Step], sizes: Sizes) -> int:
    """Estimate the tokens of one epoch, including the interleaved rows among the inputs."""
    return sum(size.rows * min(size.tokens, spec.training.max_seq_length) for size in _parts(spec, inputs, sizes))


def _epochs(spec: TrainingSpec, inputs: Sequence[Step], sizes: Sizes) -> float:
    """Return the number of epochs: the profile's, or as many as `spec.steps` optimizer steps take."""
    if spec.steps is None:
        return spec.training.epochs
    return spec.steps * spec.training.rows_per_step / max(1, sum(size.rows for size in _parts(spec, inputs, sizes)))


def _parts(spec: TrainingSpec, inputs: Iterable[Step], sizes: Sizes) -> list[Size]:
    return [spec.rows.size(sizes), *(step.size(sizes) for step in inputs if isinstance(step, AddedRows))]
