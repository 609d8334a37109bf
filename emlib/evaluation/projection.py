"""Projection of answers onto a persona vector: a check that needs no judge (Chen et al. 2025).

For each answer, the mean activation of its tokens at a layer, projected onto the unit vector of the trait's direction
e_l. A fine-tune that spreads the trait moves answers along it; compare with the projection of the untrained model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.core.progress import bar
from emlib.data.chat import Encoded
from emlib.models.hooks import capture_activations
from emlib.models.logprobs import last_hidden


@torch.inference_mode()
def projections(model: nn.Module, rows: Sequence[Encoded], vector: Tensor, layer: int) -> list[float]:
    """For each row the mean over response tokens of h_l . e / |e|, h_l the output of block `layer`, counted from 1.

    Args:
        model: the one whose activations are looked at, under its adapter if it has one.
        rows: conversations that end with the answers.
        vector: the trait's direction at `layer`, (hidden,).
        layer: which one.

    Raises:
        EmlibError: no such layer, a vector of another model, or one without a direction.
    """
    if not float(vector.norm()):
        raise EmlibError("the persona vector is zero: it has no direction to project onto.")
    device = next(model.parameters()).device
    unit = (vector / vector.norm()).to(device, torch.float32)
    found = []
    for row in bar(rows, "projections", "answer", total=len(rows)):
        with capture_activations(model, [layer]) as read:
            last_hidden(model, torch.from_numpy(row.input_ids)[None].to(device), None)
        states = read[layer][0]  # (seq, hidden)
        if states.shape[-1:] != unit.shape:
            raise EmlibError(f"the persona vector has {unit.numel()} numbers and layer {layer} of this model has "
                             f"{states.shape[-1]}: it was taken from another model.")
        mask = torch.from_numpy(row.response_mask).to(device)
        found.append(float((states[mask].float() @ unit).mean()))
    return found
