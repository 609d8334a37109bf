"""The gate of a SwiGLU block as one function of its two inputs, h = silu(g) * u, which saves only g and u.

Autograd also saves silu(g), which is as wide. Without it, a block of Qwen2.5-7B saves 160 kB of activations per token
instead of 198; the inputs of the matrix products are saved in any case.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from emlib.models.kernels.forwards import computed_by


def plain_gates(model: nn.Module) -> AbstractContextManager[None]:
    """Use `Gate` for Llama and Qwen2; gates of other models or with another activation are unchanged."""
    return computed_by(_forward, (part for part in model.modules() if type(part) in (LlamaMLP, Qwen2MLP)
                                  and type(part.act_fn) in (nn.SiLU, SiLUActivation)))


def _forward(part: Any, x: Tensor) -> Tensor:
    return part.down_proj(Gate.apply(part.gate_proj(x), part.up_proj(x)))


class Gate(torch.autograd.Function):
    """silu(g) * u with gradients for both: (..., width) twice -> the same."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Compute the gated values; shapes: gate and up (..., width)."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradients of gate and up."""
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(upstream * up, gate), F.silu(gate).mul_(upstream)
