"""Training a LoRA adapter on a CPU with fewer and smaller steps: the same mathematics, less work around the products.

    y = x W^T + b + s (x A^T) B^T                            (a LoRA layer; W and b frozen, A and B trained: `lora`)
    o = softmax(s q k^T + causal mask) v                     (attention: `attention`)
    y = w x / sqrt(mean(x^2) + eps)                          (RMSNorm, w frozen: `norm`)

PEFT computes the second half of a LoRA layer in float32, because A and B are float32, and keeps every value in between
for the backward pass, as torch does with a norm's; torch's fused attention saves memory, but on a CPU takes long on its
way back. Here each of the three is one function that keeps what comes in and little more. In float32 the results are
those of PEFT and torch up to the order of sums; in bfloat16 they differ by its rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from emlib.models.cpu.attention import packs, plain_attention
from emlib.models.cpu.lora import plain_lora
from emlib.models.cpu.norm import plain_norms

__all__ = ["fast_on_cpu", "packs"]


@contextmanager
def fast_on_cpu(model: nn.Module) -> Iterator[None]:
    """Fit `model` for training where its weights are on a CPU; what it was at the end, also after an exception.

    On a GPU nothing changes. What one of the three functions cannot do, transformers, PEFT and torch do as ever; each
    says what that is.
    """
    if next(model.parameters()).device.type != "cpu":
        yield
        return
    with ExitStack() as stack:
        for made in (plain_lora, plain_attention, plain_norms):
            stack.enter_context(made(model))
        yield
