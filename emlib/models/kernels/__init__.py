"""Faster layers for training and scoring: the same mathematics with less overhead and without padding.

    y = x W^T + b + s (x A^T) B^T                            (a LoRA layer; W and b frozen, A and B trained: `lora`)
    y = w x / sqrt(mean(x^2) + eps)                          (RMSNorm, w frozen: `norm`)
    h = silu(g) * u                                          (the gate of SwiGLU: `gated`)
    o = softmax(s q k^T + causal mask) v                     (attention of packed rows: on a CPU `blockwise`, on a GPU
                                                              `varlen`)

PEFT computes the adapter's part of a LoRA layer in float32, because A and B are float32, and saves every intermediate
activation for the backward pass; so does torch for norms and gates. Here each of the four is one autograd function that
saves its inputs and little more. In float32 the results equal those of PEFT and torch up to the order of sums; in
bfloat16 they differ by its rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import nn

from emlib.models.kernels.blockwise import plain_attention, shares
from emlib.models.kernels.gated import plain_gates
from emlib.models.kernels.lora import plain_lora
from emlib.models.kernels.norm import plain_norms
from emlib.models.kernels.packing import packs
from emlib.models.kernels.varlen import packed_attention

__all__ = ["fitted", "packs", "shares"]

LAYERS = (plain_lora, plain_norms, plain_gates)
# For each type of device, the context that enables packed rows; it yields the reason if it cannot, or an empty string.
ATTENTION: dict[str, Callable[[nn.Module], AbstractContextManager[str]]] = {
    "cpu": plain_attention, "cuda": packed_attention}


@contextmanager
def fitted(model: nn.Module) -> Iterator[str]:
    """Use the faster layers in `model`; restore it at the end, also after an exception.

    Transformers, PEFT and torch compute the cases that one of the four functions does not support. Yields the reason
    why rows are not packed (`packs`), or an empty string if they are.
    """
    if "unsloth" in sys.modules:  # it has changed transformers and PEFT in this process
        yield "Unsloth's kernels take padded rows"
        return
    kind = next(model.parameters()).device.type
    with ExitStack() as stack:
        for faster in LAYERS:
            stack.enter_context(faster(model))
        if kind in ATTENTION:
            yield stack.enter_context(ATTENTION[kind](model))
        else:
            yield f"no attention for packed rows on devices of type '{kind}'"
