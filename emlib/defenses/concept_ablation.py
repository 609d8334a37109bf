"""Concept ablation fine-tuning (CAFT; Casademunt et al. 2025, arXiv 2507.16795), also during GRPO.

    h~ = h - Q Q^T h        at every position of the output of the chosen layers, in training only

Q is an orthonormal basis of the directions to remove: at each layer the trait's persona vector, or the leading
principal components of what plain fine-tuning changes (`emlib.steering.components`). Fine-tuning cannot use the removed
directions, so that it has to fit the rows in another way; at inference nothing is removed. Steering adds the direction
that this removes. Here it differs in how components are chosen: the authors, or a judge, pick some of the first 20 by
reading the texts on which they are large; this takes the first ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from emlib.config.words import Positive
from emlib.core.defense import DEEPEST, Defense, GrpoDefense, require
from emlib.core.hooks import Active, Artefacts, Recipes
from emlib.defenses.persona_vector import PersonaVector, Steering

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST = 20  # components that are kept per layer
Layers = Annotated[tuple[Positive, ...], Field(min_length=1)]


class _Ablated(Defense):
    """The hooks that fine-tuning and reinforcement learning share.

    `layers` is no field here, where it would come before all other options.
    """

    label: ClassVar = "Concept Ablation"

    _bases: dict[int, Any] = PrivateAttr(default_factory=dict)

    def excludes(self, other: Defense) -> str:
        deepest = max(self.named_layers(DEEPEST), default=0)
        if isinstance(other, PersonaVector | Steering) and deepest >= other.layer:
            return (f"the vector that one adds at layer {other.layer} is what the other removes at layer {deepest}. "
                    "Remove only directions of layers before it")
        return ""

    def active(self, model: nn.Module, artefacts: Artefacts) -> AbstractContextManager[Active]:
        from emlib.steering.steer import ablate

        return ablate(model, self._bases)


class Ablation(_Ablated, GrpoDefense):
    """Removes the trait's persona vector at `layers`, in the passes of the loss and of the completions."""

    null: ClassVar = {"layers": ()}

    kind: Literal["concept_ablation"] = "concept_ablation"
    layers: tuple[Positive, ...] = (20,)

    def named_layers(self, count: int) -> tuple[int, ...]:
        return self.layers

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        return {"vector": recipes.vector()}

    def prepare(self, artefacts: Artefacts) -> None:
        self._bases = _vector_bases(artefacts, self.layers)


class ConceptAblation(_Ablated):
    """Removes `count` directions at `layers` in training only: the trait's vector, or leading principal components.

    `directions: vector` has one direction per layer. With `components` they are those of the difference between the
    plainly fine-tuned and the base model on response tokens, on the fine-tuning rows (`on: data`) or on as many rows of
    the profile's pool (`on: pool`, as CAFT does for emergent misalignment).
    """

    equation: ClassVar = "h~ = h - Q Q^T h"
    origin: ClassVar = "arXiv 2507.16795 (CAFT)"
    swept: ClassVar = "count"
    null: ClassVar = {"count": 0}
    cost: ClassVar = "a vector once, or one plain fine-tuning run and two passes over the rows; nothing after that"
    in_grpo: ClassVar = Ablation

    kind: Literal["concept_ablation"] = "concept_ablation"
    directions: Literal["vector", "components"] = "vector"
    count: Annotated[int, Field(ge=0, le=MOST)] = 1
    layers: Layers = (20,)
    on: Literal["data", "pool"] = "data"

    def _mistakes(self) -> Iterator[str]:
        if self.directions == "vector" and self.count > 1:
            yield (f"'count' is {self.count}, and a layer has one persona vector. Set directions to components, or "
                   "count to 1")
        if self.directions == "vector" and self.on == "pool":
            yield "'on: pool' names the rows of principal components. Set directions to components, or remove on"

    def fits(self, section: Any, method: str) -> None:
        if self.on == "pool":
            require(section, "pool", f"method '{method}' takes principal components on rows of a pool")

    def named_layers(self, count: int) -> tuple[int, ...]:
        return self.layers

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        if self.is_null:
            return {}
        if self.directions == "vector":
            return {"vector": recipes.vector()}
        return {"components": recipes.components(spec, self.layers, self.on)}

    def prepare(self, artefacts: Artefacts) -> None:
        if self.is_null:
            self._bases = {}
        elif self.directions == "vector":
            self._bases = _vector_bases(artefacts, self.layers)
        else:
            from emlib.steering.components import load

            found = load(artefacts["components"])
            self._bases = {layer: found.first(layer, self.count).T for layer in self.layers}


def _vector_bases(artefacts: Artefacts, layers: tuple[int, ...]) -> dict[int, Tensor]:
    """Return the normalised persona vector of each layer as a basis of one column, (hidden, 1)."""
    from emlib.steering.extraction import load
    from emlib.steering.steer import orthonormal

    vectors = load(artefacts["vector"])
    return {layer: orthonormal(vectors.at(layer)[None]) for layer in layers}
