"""A penalty on moving along the trait's persona vector (after BLOCK-EM; arXiv 2602.00767).

    L = L_CE + lambda * mean over tokens and layers of relu(z - z_ref)^2,        z = h . e / |e|

h is the output of a layer in the trained model, z_ref the same projection in the reference model, and e the trait's
persona vector at that layer. It is one-sided: a model that moves away from the trait pays nothing. Here it differs in
the features: BLOCK-EM penalises a few latents of a sparse autoencoder that were found to control misalignment, and also
has latents that must not fall; this penalises one direction per layer, at all positions. `both: true` penalises moves
in both directions, (z - z_ref)^2. Together with `persona_vector`, z is taken without the vector that steering adds. In
GRPO the mean is over the tokens of the completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from emlib.config.words import Positive, Weight
from emlib.core.defense import Defense, GrpoDefense
from emlib.core.hooks import Artefacts, ForwardPass, Recipes

if TYPE_CHECKING:
    from torch import Tensor


class _Projection(Defense):
    """The options and hooks that fine-tuning and reinforcement learning share."""

    label: ClassVar = "Projection Penalty"
    swept: ClassVar = "weight"
    null: ClassVar = {"weight": 0.0}
    wants_reference: ClassVar = True
    reads_hidden: ClassVar = False

    weight: Weight = 1.0
    layers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (20,)
    both: bool = False
    _directions: dict[int, Any] = PrivateAttr(default_factory=dict)
    _stored: Any = PrivateAttr(default=None)

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        return {"vector": recipes.vector()}

    def prepare(self, artefacts: Artefacts) -> None:
        from emlib.steering.extraction import load, unit

        vectors = load(artefacts["vector"])
        self._directions = {layer: unit(vectors.at(layer), layer) for layer in self.layers}

    def reads_layers(self, count: int) -> tuple[int, ...]:
        return self.layers

    def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
        """Return the sum over tokens of the mean over layers."""
        import torch

        stored = None if self._stored is None else self._stored.by_row(trained.keys)
        parts = [torch.zeros((), device=trained.features[self.layers[0]].device)]  # a pass of padding has no rows
        for place, layer in enumerate(self.layers):
            theirs = reference.by_row(layer) if stored is None else [row[:, place] for row in stored]
            parts += [rise(ours, before, self._directions[layer], both=self.both).sum()
                      for ours, before in zip(trained.by_row(layer), theirs, strict=True)]
        return torch.stack(parts).sum() / len(self.layers)


class Projected(_Projection, GrpoDefense):
    """The penalty on the positions of the completions, in the passes of the loss; options as in fine-tuning."""

    kind: Literal["projection_penalty"] = "projection_penalty"


class ProjectionPenalty(_Projection):
    """Penalises the rise of the projection onto the persona vector at `layers`; with `both` its fall as well.

    The reference model's pass ends at the deepest of the layers, and other defenses share it. `reference: stored` keeps
    its projections on disk, a number for each token and layer, which saves the pass for other weights and seeds on the
    same rows, unless another defense needs it.
    """

    equation: ClassVar = "lambda * relu(z - z_ref)^2"
    origin: ClassVar = "after arXiv 2602.00767 (BLOCK-EM)"
    cost: ClassVar = "a vector once; the reference model's pass up to the deepest layer, once if it is stored"
    in_grpo: ClassVar = Projected

    kind: Literal["projection_penalty"] = "projection_penalty"
    reference: Literal["computed", "stored"] = "computed"

    @property
    def runs_reference(self) -> bool:
        """Whether the reference model's projections are not on disk."""
        return self.reference == "computed"

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        stored = {} if self.reference == "computed" else {
            "reference_projections": recipes.reference_projections(spec, self.layers)}
        return {**super().needs(recipes, spec), **stored}

    def prepare(self, artefacts: Artefacts) -> None:
        super().prepare(artefacts)
        if self.reference == "stored":
            from emlib.models.reference import StoredReference

            self._stored = StoredReference(artefacts["reference_projections"])


def rise(trained: Tensor, reference: Tensor, direction: Tensor, *, both: bool = False) -> Tensor:
    """Return the penalty of each position: the squared rise of the projection onto a direction, (positions,).

    Args:
        trained: a layer's outputs, (positions, hidden).
        reference: the same for the reference model, or their projections, (positions,).
        direction: of length 1, (hidden,).
        both: whether a fall counts as well.
    """
    direction = direction.to(trained.device)
    if reference.dim() == 1:
        change = trained.float() @ direction - reference.to(trained.device)
    else:
        change = (trained.float() - reference.float()) @ direction
    return (change if both else change.relu()).square()
