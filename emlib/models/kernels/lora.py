"""A LoRA layer as one function of its input and of A and B: y = x W^T + b + s (x A^T) B^T.

It saves only x and x A^T for the backward pass. In bfloat16, A, B and x A^T are rounded to bfloat16 before they are
multiplied, and the products of W and of the adapter are added in bfloat16; A and B themselves, the sums of their
gradients over passes and the optimizer's state stay float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from emlib.models.kernels.forwards import computed_by


def plain_lora(model: nn.Module) -> AbstractContextManager[None]:
    """Use `LoraProduct` for every LoRA layer.

    PEFT computes layers with dropout, several adapters or a variant of LoRA, and layers that are off or merged.
    """
    return computed_by(_forward, (layer for layer in model.modules() if type(layer) is LoraLinear))


def _forward(layer: LoraLinear, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Compute the layer's output for x, (..., in) -> (..., out), by PEFT unless it has exactly one plain adapter."""
    base, active = layer.base_layer, layer.active_adapters
    name = active[0] if len(active) == 1 else ""
    plain = (name in layer.lora_A and name not in layer.lora_variant and not layer.merged
             and not layer.disable_adapters and type(base) is nn.Linear
             and not layer.lora_bias[name] and isinstance(layer.lora_dropout[name], nn.Identity))
    if not plain or args or options or x.dtype != base.weight.dtype or torch.is_autocast_enabled(x.device.type):
        return LoraLinear.forward(layer, x, *args, **options)
    return LoraProduct.apply(x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight,
                             layer.scaling[name])


class LoraProduct(torch.autograd.Function):
    """x W^T + b + s (x A^T) B^T with gradients for x, A and B: (..., in) -> (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor,
                scale: float) -> Tensor:
        """Compute the output; shapes: x (..., in), weight (out, in), bias (out), a (rank, in), b (out, rank)."""
        rows = x.reshape(-1, x.shape[-1])
        low = (rows @ a.to(x.dtype).T).mul_(scale)  # (tokens, rank)
        out = F.linear(rows, weight, bias).addmm_(low, b.to(x.dtype).T)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x, A and B."""
        rows, weight, a, b, low = ctx.saved_tensors
        g = upstream.reshape(-1, upstream.shape[-1])
        g_low = (g @ b.to(g.dtype)).mul_(ctx.scale)  # (tokens, rank)
        to_x = None
        if ctx.needs_input_grad[0]:  # not in the first block: embeddings are frozen
            to_x = (g @ weight).addmm_(g_low, a.to(g.dtype)).view(*upstream.shape[:-1], -1)
        return to_x, None, None, (g_low.T @ rows).to(a.dtype), (g.T @ low).to(b.dtype), None
