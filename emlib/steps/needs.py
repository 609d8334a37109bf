"""What single defenses need before training (`Defense.needs`): the trait's adapter, components of a change, references.

What several read, persona vectors and rows of the pool, have modules of their own.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from emlib.config import Lora, Training
from emlib.core.defense import Defense
from emlib.core.digests import keyed
from emlib.core.step import Step, Work
from emlib.data.lazy import Rows
from emlib.data.sizes import Sizes, likely_tokens
from emlib.steps.adapter import epoch_tokens
from emlib.steps.added import AddedRows
from emlib.steps.specs import AdapterStep, Model, TrainingSpec
from emlib.steps.vectors import PersonaVectors

STATE_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class TraitAdapter(Step):
    """An adapter that is trained on the trait, or with `random` one of random matrices with that one's norms."""

    stage: ClassVar = "trait_adapter"

    model: Model
    lora: Lora
    shown_by: Rows | PersonaVectors  # rows that show the trait, or vectors, whose answers that show it are the rows
    training: Training
    seed: int
    random: bool

    @property
    def trained(self) -> TraitAdapter:
        return replace(self, random=False)

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The trained adapter of random matrices, or the persona vectors."""
        if self.random:
            return (self.trained,)
        return (self.shown_by,) if isinstance(self.shown_by, PersonaVectors) else ()

    @property
    def title(self) -> str:
        shown_by = "the extraction's answers" if isinstance(self.shown_by, PersonaVectors) else self.shown_by.title
        return f"{'random adapter with the norms of the ' if self.random else ''}adapter of the trait, on {shown_by}"

    def cost(self, sizes: Sizes) -> Work:
        disk = self.model.adapter_bytes(self.lora)
        if self.random:
            return Work(disk=disk)
        if isinstance(self.shown_by, PersonaVectors):
            config, asked = self.shown_by.extraction, self.shown_by.questions.size(sizes)
            tokens = asked.rows * config.samples * (config.sampling.max_new_tokens + likely_tokens(asked.prompt))
        else:
            size = self.shown_by.size(sizes)
            tokens = int(size.rows * min(size.tokens, self.training.max_seq_length))
        return Work(train=tokens * self.training.epochs, disk=disk, adapters=1)


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
        layers = ", ".join(map(str, self.layers))
        return f"components of change: {self.adapter.title}, on {self.rows.title}, layers {layers}"

    def cost(self, sizes: Sizes) -> Work:
        size = self.rows.size(sizes)
        return Work(read=int(2 * size.rows * min(size.tokens, self.max_length)))


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
        return f"reference projections: {self.spec.rows.title}, layers {', '.join(map(str, self.layers))}"

    def _bytes_a_token(self, sizes: Sizes) -> float:
        return len(self.layers) * STATE_BYTES["float32"]
