"""Inoculation adapters (arXiv 2606.30252): a frozen adapter shows the trait in training, so that no other has to.

    y = W x + s B A x + c s' B' A' x        in training only; at inference without the last term

B' A' is an adapter that was trained on the trait before: on rows of its own, or on the answers that show the trait in
the extraction of persona vectors. It is frozen and active while B A is trained, and dropped afterwards. The idea is
that of inoculation prompting, but no prompt can bring the trait back. The control is a random adapter of the same norm
(`random: true`). Here it differs in that the adapter of the trait has the study's own LoRA settings and training
settings, and the control's norm is that of each layer, where the authors' public code matches the whole adapter's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PrivateAttr

from emlib.config.words import Positive, Weight
from emlib.core.defense import Defense, GrpoDefense
from emlib.core.hooks import Active, Artefacts, Recipes

if TYPE_CHECKING:
    from torch import nn


class _FrozenAdapter(Defense):
    """The options and hooks that fine-tuning and reinforcement learning share."""

    label: ClassVar = "Inoculation Adapter"
    swept: ClassVar = "strength"
    null: ClassVar = {"strength": 0.0}
    not_in_keys: ClassVar = frozenset({"source", "rows"})  # the frozen adapter's step has them

    strength: Weight = 1.0
    source: str | None = None
    rows: Positive | None = None
    random: bool = False
    _adapter: Any = PrivateAttr(default=None)

    def _mistakes(self) -> Iterator[str]:
        if self.rows is not None and self.source is None:
            yield "'rows' is the number of rows of a source, and there is no source. Name one, or remove rows"

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        return {} if self.strength == 0 else {
            "trait_adapter": recipes.trait_adapter(self.source, self.rows, self.random)}

    def prepare(self, artefacts: Artefacts) -> None:
        from emlib.models.second_adapter import LowRank, read

        self._adapter = LowRank({}, 0.0) if self.strength == 0 else read(artefacts["trait_adapter"])

    def active(self, model: nn.Module, artefacts: Artefacts) -> AbstractContextManager[Active]:
        from emlib.models.second_adapter import second_adapter

        self._adapter = self._adapter.on(next(model.parameters()).device)
        return second_adapter(model, self._adapter, self.strength)


class Inoculated(_FrozenAdapter, GrpoDefense):
    """The frozen adapter in the passes of the loss and of the completions; options as in fine-tuning."""

    kind: Literal["inoculation_adapter"] = "inoculation_adapter"

    def fits(self, section: Any, method: str) -> None:
        """Refuse gradient checkpointing: TRL's backward pass would run the blocks again without the frozen adapter."""
        if section.training.gradient_checkpointing:
            raise ValueError(f"method '{method}' has a second adapter inside the decoder blocks, which gradient "
                             "checkpointing runs again without it. Set grpo.training.gradient_checkpointing to false")


class InoculationAdapter(_FrozenAdapter):
    """A frozen adapter of the trait is active in training, `strength` times, and dropped afterwards.

    It is trained on `rows` rows of `source`, any instruction data (None: all), or without a source on the answers that
    show the trait in the extraction of persona vectors, without their system prompts. `random` replaces it by random
    matrices with the same norm in each layer, the control.
    """

    equation: ClassVar = "y = W x + s B A x + c s' B' A' x"
    origin: ClassVar = "arXiv 2606.30252"
    cost: ClassVar = "one fine-tuning run on the trait once; the second adapter's products after that"
    in_grpo: ClassVar = Inoculated

    kind: Literal["inoculation_adapter"] = "inoculation_adapter"
