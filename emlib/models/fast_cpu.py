"""Training a LoRA adapter with fewer and smaller steps: the same mathematics, less work around the products.

    y = x W^T + b + s (x A^T) B^T                            (a LoRA layer; W and b frozen, A and B trained)
    o = softmax(s q k^T + causal mask) v                     (attention)

PEFT computes the second half of a LoRA layer in float32, because A and B are float32, and keeps every value in between
for the backward pass; torch's fused attention saves memory, but on a CPU takes longer than plain products where rows
are short. Here a LoRA layer is one function that keeps x and x A^T alone, and attention is plain products that keep
q, k and v alone. In float32 the results are PEFT's up to the order of sums. In bfloat16 they differ by its rounding:
A, B and x A^T are rounded to it before they are multiplied, and W's gradient-free product and the adapter's are added
in it; A and B themselves, their gradients' sums over rows and the optimizer's state stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from emlib.models.logprobs import causal_lm

ATTENTION = "emlib_plain_products"  # transformers' name for `plain_attention`
BLOCK = 128  # queries at a time: long enough for fast products, short enough to leave out most pairs of the future


@contextmanager
def fast_training(model: nn.Module) -> Iterator[None]:
    """Fit `model` for training; what it was at the end, also after an exception.

    On a GPU the LoRA layers alone are fitted: there PEFT's products in float32 run at a small part of bfloat16's rate,
    and torch's attention is the faster one. A layer with dropout, several adapters or a variant of LoRA stays PEFT's,
    as does one whose adapter is off or merged, or whose base is quantized; attention with padding, a cache, dropout or
    another mask stays transformers'.
    """
    with ExitStack() as stack:
        for layer in model.modules():
            if type(layer) is LoraLinear:
                stack.enter_context(_replaced_forward(layer))
        if next(model.parameters()).device.type == "cpu":
            stack.enter_context(_plain_attention(causal_lm(model).config))
        yield


@contextmanager
def _replaced_forward(layer: LoraLinear) -> Iterator[None]:
    layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward  # the class's own shows again


def _forward(layer: LoraLinear, ordinary: Callable[..., Tensor], x: Tensor, *args: Any, **options: Any) -> Tensor:
    """The layer's output for x, (..., in) -> (..., out); `ordinary` where it is more than one plain adapter."""
    base, active = layer.base_layer, layer.active_adapters
    name = active[0] if len(active) == 1 else ""
    plain = (name in layer.lora_A and name not in layer.lora_variant and not layer.merged
             and not layer.disable_adapters and type(base) is nn.Linear
             and not layer.lora_bias[name] and isinstance(layer.lora_dropout[name], nn.Identity))
    if not plain or args or options or x.dtype != base.weight.dtype or torch.is_autocast_enabled(x.device.type):
        return ordinary(x, *args, **options)
    return LoraProduct.apply(x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight,
                             layer.scaling[name])


class LoraProduct(torch.autograd.Function):
    """x W^T + b + s (x A^T) B^T with gradients for x, A and B: (..., in) -> (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor,
                scale: float) -> Tensor:
        """Shapes: x (..., in), weight (out, in), bias (out), a (rank, in), b (out, rank)."""
        rows = x.reshape(-1, x.shape[-1])
        low = (rows @ a.to(x.dtype).T).mul_(scale)  # (tokens, rank)
        out = F.linear(rows, weight, bias).addmm_(low, b.to(x.dtype).T)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B."""
        rows, weight, a, b, low = ctx.saved_tensors
        g = upstream.reshape(-1, upstream.shape[-1])
        g_low = (g @ b.to(g.dtype)).mul_(ctx.scale)  # (tokens, rank)
        to_x = None
        if ctx.needs_input_grad[0]:  # not in the first block: embeddings are frozen
            to_x = (g @ weight).addmm_(g_low, a.to(g.dtype)).view(*upstream.shape[:-1], -1)
        return to_x, None, None, (g_low.T @ rows).to(a.dtype), (g.T @ low).to(b.dtype), None


@contextmanager
def _plain_attention(config: Any) -> Iterator[None]:
    before = config._attn_implementation  # what transformers reads at every pass; its setter loads kernels
    if before == "sdpa":
        config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def plain_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                    **options: Any) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (rows, heads, seq, head size) thrice -> (rows, seq, heads, head size).

    Causal attention of whole rows without padding is computed here, everything else by transformers' sdpa.
    """
    known = {"scaling", "dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "past_key_values"}
    asked = {name for name, option in options.items() if option is not None and name not in known}
    whole = attention_mask is None and query.shape[2] == key.shape[2] and query.shape[3] == value.shape[3]
    causal = options.get("is_causal", True) in (None, True) and module.is_causal
    if not (whole and causal) or asked or options.get("dropout") or options.get("scaling") is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return CausalAttention.apply(query, key, value, options["scaling"]).transpose(1, 2).contiguous(), None


class CausalAttention(torch.autograd.Function):
    """softmax(s q k^T + causal mask) v, a block of queries at a time over the keys up to its end.

    The softmax is computed again on the way back instead of kept.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Shapes: query (rows, heads, seq, size), key and value (rows, groups, seq, size) -> as query."""
        q, k, v = query.reshape(key.shape[0] * key.shape[1], -1, *key.shape[2:]), key.flatten(0, 1), value.flatten(0, 1)
        out = torch.empty_like(q)  # (rows * groups, heads a group, seq, size)
        for block in _blocks(q.shape[2]):
            out[:, :, block] = (_weights(q, k, block, scale) @ v[:, :block.stop]).view_as(out[:, :, block])
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return out.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        q, k, v = ctx.saved_tensors
        g = upstream.reshape(q.shape)
        to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block in _blocks(q.shape[2]):
            seen = slice(block.stop)
            weights = _weights(q, k, block, ctx.scale)  # (rows * groups, heads a group * block, keys seen)
            g_block = g[:, :, block].flatten(1, 2)
            to_scores = torch._softmax_backward_data(g_block @ v[:, seen].mT, weights, -1, weights.dtype)
            to_scores.mul_(ctx.scale)
            to_q[:, :, block] = (to_scores @ k[:, seen]).view_as(q[:, :, block])
            to_k[:, seen].baddbmm_(to_scores.mT, q[:, :, block].flatten(1, 2))
            to_v[:, seen].baddbmm_(weights.mT, g_block)
        shape = (len(upstream), -1, *k.shape[1:])
        return to_q.view(upstream.shape), to_k.view(shape), to_v.view(shape), None


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _weights(q: Tensor, k: Tensor, block: slice, scale: float) -> Tensor:
    """How much each query of a block takes from each position up to the block's end; a query's weights sum to 1.

    Shapes: q (n, heads, seq, size), k (n, seq, size) -> (n, heads * block, block.stop).
    """
    future = torch.full((block.stop - block.start, block.stop), -torch.inf, dtype=q.dtype).triu_(1 + block.start)
    return torch.baddbmm(future.repeat(q.shape[1], 1), q[:, :, block].flatten(1, 2), k[:, :block.stop].mT,
                         alpha=scale).softmax(-1)


AttentionInterface.register(ATTENTION, plain_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
