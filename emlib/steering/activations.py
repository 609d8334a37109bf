"""The mean activation of each answer's tokens at some layers, and its projection onto a persona vector.

The projection is an auxiliary measure that needs no judge (Chen et al. 2025): for each answer, the mean activation of
its tokens at a layer, projected onto the unit vector of the trait's direction e_l. Fine-tuning that generalises the
trait out of domain moves answers along it; compare with the untrained model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.core.progress import bar
from emlib.data.chat import Encoded
from emlib.models.batches import forward_batches
from emlib.models.hooks import capture_activations, first_blocks
from emlib.models.kernels import fitted

TOGETHER = 8  # rows of a pass on a GPU


@torch.inference_mode()
def response_means(model: nn.Module, rows: Sequence[Encoded], layers: Sequence[int]) -> Tensor:
    """Compute the mean of the layers' outputs over each row's response tokens: (rows, layers, hidden), in float32.

    Layers are counted from 1; a pass ends after the deepest of them. Rows are packed where the model takes packed rows,
    so that a result differs by rounding from that of its row alone. Equal rows are computed once.
    """
    found: dict[str, Tensor] = {}
    different = list({row.key: row for row in rows}.values())
    with fitted(model):
        passes = forward_batches(different, TOGETHER, model, responses_only=True) if different else []
        with first_blocks(model, max(layers)):  # `fitted` checks whole models alone
            for batch in bar(passes, "activations", "pass", total=len(passes)):
                with capture_activations(model, layers) as outputs:
                    batch.hidden(model)
                for key, place in zip(batch.keys, batch.spans, strict=True):
                    counts = batch.response_mask[place]
                    found[key] = torch.stack([outputs[layer][place][counts].float().mean(0) for layer in layers]).cpu()
    return torch.stack([found[row.key] for row in rows]) if rows else torch.empty(0, len(layers), 0)


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
                         f"{means.shape[-1]}: it was extracted from another model. Extract it again with this one.")
    return [float(mean @ unit) for mean in means]
