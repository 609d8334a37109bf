"""The gate of a SwiGLU block as one function of its two inputs: h = silu(g) * u. It keeps g and u alone.

Autograd keeps silu(g) as well, which is as wide. Without it a block of Qwen2.5-7B keeps 160 kB of each token in place
of 198, for the products behind it are kept anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP


@contextmanager
def plain_gates(model: nn.Module) -> Iterator[None]:
    """The gates of Llama and Qwen2 by `Gate`; those of other models, or with another activation, stay as they are."""
    replaced = [part for part in model.modules()
                if type(part) in (LlamaMLP, Qwen2MLP) and type(part.act_fn) in (nn.SiLU, SiLUActivation)]
    for part in replaced:
        part.forward = partial(_forward, part)
    try:
        yield
    finally:
        for part in replaced:
            del part.forward  # the class's own shows again


def _forward(part: Any, x: Tensor) -> Tensor:
    return part.down_proj(Gate.apply(part.gate_proj(x), part.up_proj(x)))


class Gate(torch.autograd.Function):
    """silu(g) * u with gradients for both: (..., width) twice -> the same."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Shapes: gate and up (..., width)."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(upstream * up, gate), F.silu(gate).mul_(upstream)
