"""Projection of answers onto a persona vector: an auxiliary measure that needs no judge (Chen et al. 2025).

For each answer, the mean activation of its tokens at a layer, projected onto the unit vector of the trait's direction
e_l. Fine-tuning that generalises the trait out of domain moves answers along it; compare with the untrained model's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.data.chat import Encoded
from emlib.models.means import response_means


def projections(model: nn.Module, rows: Sequence[Encoded], vector: Tensor, layer: int) -> list[float]:
    """Compute for each row the mean over response tokens of h_l . e / |e|, with h_l the output of block `layer`.

    `vector` is the trait's direction e at `layer`, (hidden,); layers are counted from 1.

    Raises:
        EmlibError: the layer does not exist, or the vector belongs to another model or is zero.
    """
    if not float(vector.norm()):
        raise EmlibError("the persona vector is zero: it has no direction to project onto. Extract it again.")
    unit = (vector / vector.norm()).float()
    means = response_means(model, rows, [layer])[:, 0]
    if rows and means.shape[-1:] != unit.shape:
        raise EmlibError(f"the persona vector has {unit.numel()} numbers and layer {layer} of this model has "
                         f"{means.shape[-1]}: it was extracted from another model.")
    return [float(mean @ unit) for mean in means]
