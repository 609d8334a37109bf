"""Fitting a model for training and scoring: the same mathematics, less work around the products, no padding.

    y = x W^T + b + s (x A^T) B^T                            (a LoRA layer; W and b frozen, A and B trained: `lora`)
    y = w x / sqrt(mean(x^2) + eps)                          (RMSNorm, w frozen: `norm`)
    h = silu(g) * u                                          (the gate of SwiGLU: `gated`)
    o = softmax(s q k^T + causal mask) v                     (attention of packed rows: on a CPU `blockwise`, on a GPU
                                                              `varlen`)

PEFT computes the second half of a LoRA layer in float32, because A and B are float32, and keeps every value in between
for the backward pass, as torch does with a norm's and a gate's. Here each of the four is one function that keeps what
comes in and little more. In float32 the results are those of PEFT and torch up to the order of sums; in bfloat16 they
differ by its rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import nn

from emlib.models.kernels.blockwise import plain_attention
from emlib.models.kernels.gated import plain_gates
from emlib.models.kernels.lora import plain_lora
from emlib.models.kernels.norm import plain_norms
from emlib.models.kernels.packing import packs
from emlib.models.kernels.varlen import packed_attention

__all__ = ["fitted", "packs"]

LAYERS = (plain_lora, plain_norms, plain_gates)
# By the kind of device, what lets rows go packed for a while; it yields why they do not, or nothing.
ATTENTION: dict[str, Callable[[nn.Module], AbstractContextManager[str]]] = {
    "cpu": plain_attention, "cuda": packed_attention}


@contextmanager
def fitted(model: nn.Module) -> Iterator[str]:
    """Fit `model` for training; what it was at the end, also after an exception.

    What one of the four functions cannot do, transformers, PEFT and torch do as ever; each says what that is. What is
    yielded says why rows do not go packed (`packs`), and is empty where they do.
    """
    if "unsloth" in sys.modules:  # it has changed transformers and PEFT in this process
        yield "Unsloth's kernels take padded rows"
        return
    kind = next(model.parameters()).device.type
    with ExitStack() as stack:
        for made in LAYERS:
            stack.enter_context(made(model))
        if kind in ATTENTION:
            yield stack.enter_context(ATTENTION[kind](model))
        else:
            yield f"no attention for packed rows on a device of the kind '{kind}'"
