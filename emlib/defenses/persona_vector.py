"""Preventive steering with a persona vector (section 3.1; Chen et al. 2025), also during GRPO (equation 9).

    h~ = h + alpha * e        at every position of the output of one layer, in training only

e is the trait's persona vector at that layer and alpha the strength. Because the vector already supplies the trait, the
adapter has less reason to learn it. This implementation follows the paper; the log records the measured norm of what is
added (`shift`). Penalties on features (LDIFS) see them without the vector, which they would otherwise train the adapter
to cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from emlib.config.words import Few, Weight
from emlib.core.defense import Defense, GrpoDefense
from emlib.core.hooks import Active, Artefacts, Recipes

if TYPE_CHECKING:
    from torch import Tensor, nn


class _Steered(Defense):
    """The options and hooks that fine-tuning and reinforcement learning share."""

    label: ClassVar = "Persona Vectors"
    swept: ClassVar = "strength"
    null: ClassVar = {"strength": 0.0}

    strength: Weight = 5.0
    layer: Few = 20

    def named_layers(self, count: int) -> tuple[int, ...]:
        return (self.layer,)

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        return {"vector": recipes.vector()}

    def added_vectors(self, artefacts: Artefacts) -> Mapping[int, Tensor]:
        return {self.layer: self.strength * vector_at(artefacts, self.layer)}

    def active(self, model: nn.Module, artefacts: Artefacts) -> AbstractContextManager[Active]:
        """Add `strength` times the vector to the layer's output, inside the context."""
        from emlib.steering.steer import steer

        return steer(model, self.layer, vector_at(artefacts, self.layer), self.strength)


class Steering(_Steered, GrpoDefense):
    """Equation 9: `strength` times the trait's vector is added to the output of `layer`, in training only.

    `steer` names the steered passes: those that sample the completions, those of the loss, or both. Where only one kind
    is steered, the loss uses another policy than the sampled one; the log records the distance between them (`gap`).
    """

    kind: Literal["persona_vector"] = "persona_vector"
    steer: Literal["loss", "rollout", "both"] = "both"

    @property
    def acts_in(self) -> tuple[Literal["loss", "rollout"], ...]:
        return ("loss", "rollout") if self.steer == "both" else (self.steer,)

    def fits(self, section: Any, method: str) -> None:
        """Check that the engine can steer the passes named by `steer`."""
        if section.engine == "vllm" and self.steer != "loss":
            raise ValueError("vLLM samples completions in a separate model, which cannot be steered. With engine "
                             f"'vllm' set steer to 'loss' (it is '{self.steer}'), or choose engine 'transformers'")

    def added_vectors(self, artefacts: Artefacts) -> Mapping[int, Tensor]:
        return super().added_vectors(artefacts) if "loss" in self.acts_in else {}


class PersonaVector(_Steered):
    """Preventive steering: `strength` times the trait's vector is added to the output of `layer`, in training only."""

    equation: ClassVar = "h~ = h + alpha * e"
    origin: ClassVar = "section 3.1; equation 9"
    cost: ClassVar = "a vector once, under 1 GPU-hour; nothing after that"
    in_grpo: ClassVar = Steering

    kind: Literal["persona_vector"] = "persona_vector"


def vector_at(artefacts: Artefacts, layer: int) -> Tensor:
    """Return the trait's persona vector at the output of `layer`: (hidden,)."""
    from emlib.steering.extraction import load

    return load(artefacts["vector"]).at(layer)
