"""LDIFS: a penalty on the distance between the features of the fine-tuned and the reference model (3.1, equation 2).

    L = L_CE + lambda * mean over tokens of ||F(x) - F_ref(x)||^2

F(x) are the outputs of the chosen decoder blocks at all positions of a row, as one long vector; the reference model is
the same weights with the adapter off. One difference to the paper: the squared distance is divided by the tokens of the
step, so that long rows do not dominate; with `normalize` it is divided by the step's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from emlib.config.words import Positive, Weight
from emlib.core.defense import Defense, Denominator, ForwardPass

if TYPE_CHECKING:
    from torch import Tensor


class Ldifs(Defense):
    """L2 distance in feature space (equation 2), at every `every`-th layer or at the listed `layers`.

    `variant: published` detaches the features from the graph, as a co-author's public code does: the term adds to the
    loss but has no gradient.
    """

    label: ClassVar = "LDIFS"
    equation: ClassVar = "lambda * ||F(x) - F_ref(x)||^2"
    origin: ClassVar = "section 3.1, equation 2"
    swept: ClassVar = "weight"
    null: ClassVar = {"weight": 0.0}
    cost: ClassVar = "negligible"
    wants_reference: ClassVar = True

    kind: Literal["ldifs"] = "ldifs"
    weight: Weight = 1.0
    every: Positive = 5
    layers: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    normalize: bool = False
    variant: Literal["gradient", "published"] = "gradient"

    @property
    def per(self) -> Denominator:  # type: ignore[override]  # here an option decides
        """The denominator of the penalty: rows with `normalize`, else tokens."""
        return "row" if self.normalize else "token"

    def reads_layers(self, count: int) -> tuple[int, ...]:
        """Return the layers to compare in a model of `count` layers, counted from 1."""
        return self.layers if self.layers is not None else tuple(range(self.every, count + 1, self.every))

    def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
        """Return the sum over rows of `feature_distance`."""
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
