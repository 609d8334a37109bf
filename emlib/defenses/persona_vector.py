"""Preventive steering with a persona vector (section 3.1; Chen et al. 2025), also during GRPO (equation 9).

    h~ = h + alpha * e        at every position of the output of one layer, in training only

e is the trait's persona vector at that layer and alpha the strength. Training under the vector leaves the adapter no
reason to learn it. Here it differs in nothing; the log tells the norm of what was added, as measured (`shift`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from emlib.config.words import Positive, Weight
from emlib.core.defense import Active, Artefacts, Defense, GrpoDefense, Recipes

if TYPE_CHECKING:
    from torch import nn


class Steering(GrpoDefense):
    """Equation 9: `strength` times the trait's vector is added to the output of `layer`, in training only.

    `steer` names the passes that feel it: those that draw the completions, those that take the loss, or both. Where
    they differ the loss is taken under another policy than the one that was sampled; the log tells how far apart.
    """

    label: ClassVar = "Persona Vectors"
    swept: ClassVar = "strength"
    null: ClassVar = {"strength": 0.0}

    kind: Literal["persona_vector"] = "persona_vector"
    strength: Weight = 5.0
    layer: Positive = 20
    steer: Literal["loss", "rollout", "both"] = "both"

    @property
    def acts_in(self) -> tuple[Literal["loss", "rollout"], ...]:
        """The passes that feel it."""
        return ("loss", "rollout") if self.steer == "both" else (self.steer,)

    def fits(self, section: Any, method: str) -> None:
        """See that the model that draws completions can be steered where it is to be."""
        if section.engine == "vllm" and self.steer != "loss":
            raise ValueError("vLLM draws completions in a model of its own, which is not steered: with engine 'vllm' "
                             "only steer 'loss' can be had")

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        """The trait's persona vectors."""
        return {"vector": recipes.vector()}

    def active(self, model: nn.Module, artefacts: Artefacts) -> AbstractContextManager[Active]:
        """Steer the passes of `model` meanwhile."""
        return steered(model, artefacts, self.layer, self.strength)


class PersonaVector(Defense):
    """Preventive steering: `strength` times the trait's vector is added to the output of `layer`, in training only."""

    label: ClassVar = "Persona Vectors"
    equation: ClassVar = "h~ = h + alpha * e"
    origin: ClassVar = "section 3.1; equation 9"
    swept: ClassVar = "strength"
    null: ClassVar = {"strength": 0.0}
    cost: ClassVar = "a vector once, under 1 GPU-hour; nothing after that"
    in_grpo: ClassVar = Steering

    kind: Literal["persona_vector"] = "persona_vector"
    strength: Weight = 5.0
    layer: Positive = 20

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        """The trait's persona vectors."""
        return {"vector": recipes.vector()}

    def active(self, model: nn.Module, artefacts: Artefacts) -> AbstractContextManager[Active]:
        """Steer the passes of `model` meanwhile."""
        return steered(model, artefacts, self.layer, self.strength)


def steered(model: nn.Module, artefacts: Artefacts, layer: int, strength: float) -> AbstractContextManager[Active]:
    """While it lasts, `strength` times the persona vector of `layer` is added to that layer's output."""
    from emlib.steering.extraction import load
    from emlib.steering.steer import steer

    return steer(model, layer, load(artefacts["vector"]).at(layer), strength)
