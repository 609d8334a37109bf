"""An adapter of the trait itself, which is frozen and active while another adapter is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from emlib.config import Lora, Training
from emlib.core.step import Step, Work
from emlib.data.lazy import Rows
from emlib.data.sizes import Sizes, likely_tokens
from emlib.steps.specs import Model
from emlib.steps.vectors import PersonaVectors


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
