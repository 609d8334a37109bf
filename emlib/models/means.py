"""The mean activation of each row's response tokens at some layers, in few forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
    with fitted(model), first_blocks(model, max(layers)):
        passes = forward_batches(different, TOGETHER, model) if different else []
        for batch in bar(passes, "activations", "pass", total=len(passes)):
            with capture_activations(model, layers) as outputs:
                batch.hidden(model)
            for key, place in zip(batch.keys, batch.spans, strict=True):
                counts = batch.response_mask[place]
                found[key] = torch.stack([outputs[layer][place][counts].float().mean(0) for layer in layers]).cpu()
    return torch.stack([found[row.key] for row in rows]) if rows else torch.empty(0, len(layers), 0)
