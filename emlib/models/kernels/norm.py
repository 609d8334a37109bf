"""RMSNorm as one function of its input, y = w x / sqrt(mean(x^2) + eps), w frozen, which saves x and the root.

As in transformers' Llama and Qwen, the root and the quotient are computed in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from emlib.models.kernels.forwards import computed_by


def plain_norms(model: nn.Module) -> AbstractContextManager[None]:
    """Use `RootMeanSquare` for Llama and Qwen2; norms of other models or with trained weights are unchanged."""
    return computed_by(_forward, (layer for layer in model.modules() if type(layer) in (LlamaRMSNorm, Qwen2RMSNorm)
                                  and not layer.weight.requires_grad))


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    return RootMeanSquare.apply(x, layer.weight, layer.variance_epsilon)


class RootMeanSquare(torch.autograd.Function):
    """w x / sqrt(mean(x^2) + eps) with a gradient for x: (..., hidden) -> the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Compute the norm; shapes: x (..., hidden), weight (hidden)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(epsilon).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of x, with r the inverse of the root: r w g - x r^3 (w g . x) / hidden."""
        x, weight, inverse = ctx.saved_tensors
        wide, scaled = x.to(inverse.dtype), (upstream * weight).to(inverse.dtype)
        along = torch.linalg.vecdot(scaled, wide).unsqueeze(-1).mul_(inverse.pow(3)).div_(-x.shape[-1])
        return (scaled * inverse).addcmul_(wide, along).to(x.dtype), None, None
