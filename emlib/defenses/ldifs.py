"""LDIFS: a penalty on the distance between the features of the fine-tuned and the reference model (3.1, equation 2).

    L = L_CE + lambda / N * sum over the rows x of an optimizer step of ||F(x) - F_ref(x)||^2

F(x) are the outputs of the chosen decoder blocks at all positions of a row, as one long vector; the reference model is
the same weights with the adapter off. The paper does not state N. Here it is the number of the step's tokens by
default, so that a weight means the same for short and long rows and for any batch size. `per: row` divides by the
step's rows, and `per: step` by nothing: the literal sum, which grows with the rows, their lengths and the batch size.
With `normalize`, N is the number of rows by default.

Where the trained model is steered at layer s as well (`persona_vector`), F(x) is taken without the vector that steering
adds to layer s and, through the residual stream, to all later ones. The reference model is never steered, so that the
penalty would otherwise be about the vector and train the adapter to cancel it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from emlib.config.words import Few, Weight
from emlib.core.defense import Defense
from emlib.core.hooks import ForwardPass
from emlib.core.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor


class _Per(Strict):
    """The option `per`, in a base class because pydantic warns of a field with the name of a base's class variable."""

    per: Literal["token", "row", "step"] = "token"


class Ldifs(_Per, Defense):  # `per` is an option here, and a class variable of other defenses
    """L2 distance in feature space (equation 2), at every `every`-th layer or at the listed `layers`.

    `per` is the denominator N: `token`, `row`, or `step` for the literal sum; by default `row` with `normalize`, else
    `token`. `variant: published` detaches the features from the graph, as a co-author's public code does: the term adds
    to the loss but has no gradient.
    """

    label: ClassVar = "LDIFS"
    equation: ClassVar = "lambda * ||F(x) - F_ref(x)||^2"
    origin: ClassVar = "section 3.1, equation 2"
    swept: ClassVar = "weight"
    null: ClassVar = {"weight": 0.0}
    cost: ClassVar = "negligible"
    wants_reference: ClassVar = True
    reads_hidden: ClassVar = False

    kind: Literal["ldifs"] = "ldifs"
    weight: Weight = 1.0
    every: Few = 5
    layers: Annotated[tuple[Few, ...], Field(min_length=1)] | None = None
    normalize: bool = False
    variant: Literal["gradient", "published"] = "gradient"

    @model_validator(mode="before")
    @classmethod
    def _default_denominator(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            return options
        # Behind this validator a list is no tuple any more, because pydantic has left the JSON of the profile.
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        return {"per": "row"} | plain if plain.get("normalize") is True else plain

    @property
    def has_gradient(self) -> bool:
        """Whether the features are in the graph."""
        return self.variant == "gradient"

    def reads_layers(self, count: int) -> tuple[int, ...]:
        return self.layers if self.layers is not None else tuple(range(self.every, count + 1, self.every))

    def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
        import torch

        layers = sorted(trained.features)
        ours, theirs = ([side.by_row(layer) for layer in layers] for side in (trained, reference))
        if self.variant == "published":
            ours = [[row.detach() for row in rows] for rows in ours]
        rows = [feature_distance(a, b, normalize=self.normalize) for a, b in zip(
            zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)]
        return sum(rows, torch.zeros((), device=trained.hidden.device))  # a pass of padding has no rows


def feature_distance(trained: Sequence[Tensor], reference: Sequence[Tensor], *, normalize: bool = False) -> Tensor:
    """Return the squared L2 distance of equation 2 between a row's features in two models: a scalar.

    A row's features are the outputs of the chosen layers at all its positions, as one long vector.

    Args:
        trained: the outputs of the chosen layers, each (positions, hidden).
        reference: the same for the reference model.
        normalize: divide both vectors by their norms first, to compare directions only.
    """
    import torch

    pairs = [(a.float(), b.float()) for a, b in zip(trained, reference, strict=True)]
    if normalize:
        norms = [torch.stack([side.square().sum() for side in sides]).sum().sqrt()
                 for sides in zip(*pairs, strict=True)]
        pairs = [(a / norms[0], b / norms[1]) for a, b in pairs]
    return torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
