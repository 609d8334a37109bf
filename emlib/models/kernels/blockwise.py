"""On a CPU: causal attention of whole rows, o = softmax(s q k^T + causal mask) v, with a blockwise backward pass.

The forward pass is torch's fused kernel, whose backward pass is slow on a CPU. Here the backward pass uses matrix
products on blocks of queries that fit the processor's caches, each with the keys up to the end of the block, and
recomputes the softmax. Rows may be packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from emlib.models.kernels.packing import OURS, packs, starts, strange
from emlib.models.logprobs import causal_lm

ATTENTION = OURS + "plain_products"  # transformers' name for `attend`
BLOCK = 128  # queries at a time: long enough for fast products, short enough to skip most masked pairs


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[str]:
    """Use `CausalAttention` where transformers would use torch's; yield the reason if rows are not packed.

    Transformers still computes attention with padding, a cache, dropout or another mask.
    """
    config: Any = causal_lm(model).config
    before = config._attn_implementation  # what transformers reads at every pass; its setter loads kernels
    if before == "sdpa":
        config._attn_implementation = ATTENTION
    try:
        yield "" if packs(model) else f"attention is '{before}', or positions interact outside attention"
    finally:
        config._attn_implementation = before


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
           **options: Any) -> tuple[Tensor, None]:
    """Compute attention as transformers calls it: 3 x (rows, heads, seq, head size) -> (rows, seq, heads, head size).

    Causal attention of whole rows without padding is computed here, all other attention by transformers' sdpa.
    """
    begun = starts(options.get("position_ids"), query.shape[2]) if len(query) == 1 else (0,)
    packed = len(begun) > 1 and (options.get("sliding_window") or query.shape[2]) >= query.shape[2]
    whole = query.shape[2] == key.shape[2] and query.shape[3] == value.shape[3]
    causal = options.get("is_causal", True) in (None, True) and module.is_causal
    if (not (whole and causal and (packed or attention_mask is None)) or strange(options) or options.get("dropout")
            or options.get("scaling") is None):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return CausalAttention.apply(query, key, value, options["scaling"], begun).transpose(1, 2).contiguous(), None


class CausalAttention(torch.autograd.Function):
    """softmax(s q k^T + causal mask) v with grouped queries: `heads / groups` adjacent heads share their keys."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float,
                starts: tuple[int, ...] = (0,)) -> Tensor:
        """Compute attention: query (rows, heads, seq, size), key and value (rows, groups, seq, size) -> as query.

        `starts` are the positions at which packed rows begin; the first is 0. Rows do not attend to each other.
        """
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.spans = scale, [slice(*ends) for ends in pairwise((*starts, query.shape[2]))]
        heads = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
        return torch.cat([F.scaled_dot_product_attention(
            query[:, :, span], key[:, :, span], value[:, :, span], is_causal=True, scale=scale)
            for span in ctx.spans], dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of query, key and value."""
        query, key, value = ctx.saved_tensors
        k, v = key.flatten(0, 1), value.flatten(0, 1)  # (rows * groups, seq, size)
        q, g = (side.reshape(len(k), -1, *k.shape[1:]) for side in (query, upstream))  # (..., heads a group, seq, size)
        to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, seen in _blocks(ctx.spans):
            queries, above = (ctx.scale * q[:, :, block]).flatten(1, 2), g[:, :, block].flatten(1, 2)
            weights = _weights(queries, k[:, seen], q.shape[1])
            to_scores = torch._softmax_backward_data(above @ v[:, seen].mT, weights, -1, weights.dtype)
            to_q[:, :, block] = (to_scores @ k[:, seen]).mul_(ctx.scale).view_as(to_q[:, :, block])
            to_k[:, seen].baddbmm_(to_scores.mT, queries)
            to_v[:, seen].baddbmm_(weights.mT, above)
        return to_q.view(query.shape), to_k.view(key.shape), to_v.view(value.shape), None, None


def _blocks(spans: Iterable[slice]) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of queries with the keys that at least one of them attends to."""
    for span in spans:
        for start in range(span.start, span.stop, BLOCK):
            block = slice(start, min(start + BLOCK, span.stop))
            yield block, slice(span.start, block.stop)


def _weights(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Compute the attention weights of the last queries on all positions up to the last; each query's sum to 1.

    Shapes: queries (n, heads * block, size), scaled, and keys (n, seen, size) -> (n, heads * block, seen).
    """
    scores = queries @ keys.mT
    scores.view(len(scores), heads, -1, scores.shape[-1]).add_(
        _future(scores.shape[1] // heads, scores.shape[2], scores.dtype))
    return scores.softmax(-1)


@lru_cache(maxsize=16)
def _future(queries: int, seen: int, dtype: torch.dtype) -> Tensor:
    """Return the causal mask of the last `queries` positions: (queries, seen)."""
    return torch.full((queries, seen), -torch.inf, dtype=dtype).triu_(1 + seen - queries)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
