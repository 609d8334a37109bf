"""On a CPU: causal attention of whole rows, o = softmax(s q k^T + causal mask) v, with a blockwise backward pass.

The forward pass is torch's fused kernel, whose backward pass is slow on a CPU. Here the backward pass uses matrix
products on blocks of queries that fit the processor's caches, each with the keys up to the end of the block, and
recomputes the softmax. Rows may be packed, and may share the tokens that they begin with (`packing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from emlib.models.kernels.packing import OURS, Row, packs, rows_in, strange
from emlib.models.kernels.proof import fault
from emlib.models.logprobs import causal_lm
from emlib.models.prompts import partial_attention

ATTENTION = OURS + "plain_products"  # transformers' name for `attend`
SHARED = 16  # tokens that the two rows of the check share
# For each model, what is wrong with rows that share so many tokens.
_faults: WeakKeyDictionary[nn.Module, dict[int, str]] = WeakKeyDictionary()
BLOCK = 128  # queries at a time: long enough for fast products, short enough to skip most masked pairs


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[str]:
    """Use `CausalAttention` where transformers would use torch's; yield the reason if rows are not packed.

    The first time packed rows are checked on the model (`proof`); if they fail, nothing is changed. Transformers still
    computes attention with padding, a cache, dropout or another mask.
    """
    config: Any = causal_lm(model).config
    before = config._attn_implementation  # what transformers reads at every pass; its setter loads kernels
    if before == "sdpa":
        config._attn_implementation = ATTENTION
    try:
        reason = _obstacle(model)
        if reason:
            config._attn_implementation = before
        yield reason
    finally:
        config._attn_implementation = before


def _obstacle(model: nn.Module) -> str:
    """Return why rows of `model` cannot be packed inside `plain_attention`, or an empty string."""
    used = causal_lm(model).config._attn_implementation
    if not used.startswith(OURS):
        return f"transformers computes attention by '{used}' here"
    return _fault(model, shared=0) if packs(model) else "positions interact outside attention"


def shares(model: nn.Module) -> bool:
    """Return whether packed rows of `model` may share the tokens that they begin with, inside `plain_attention`.

    The first time it is checked on the model (`proof`). It may not where layers do not attend to whole rows, and with
    dropout, which would be the same for all rows that share a token.
    """
    if (causal_lm(model).config._attn_implementation != ATTENTION or not packs(model) or partial_attention(model)
            or (model.training and _drops(model))):
        return False
    return not _fault(model, SHARED)


def _fault(model: nn.Module, shared: int) -> str:
    """Return what is wrong with packed rows of `model` that share tokens; computed once for each model."""
    found = _faults.setdefault(causal_lm(model), {})
    if shared not in found:
        found[shared] = fault(model, nullcontext, shared)
    return found[shared]


def _drops(model: nn.Module) -> bool:
    """Return whether training drops anything: a layer, such as LoRA's, or a function, as the configuration says."""
    rates = [rate for name, rate in causal_lm(model).config.get_text_config().to_dict().items() if "drop" in name]
    return any(isinstance(rate, float) and rate > 0 for rate in rates) or any(
        isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
           **options: Any) -> tuple[Tensor, None]:
    """Compute attention as transformers calls it: 3 x (rows, heads, seq, head size) -> (rows, seq, heads, head size).

    Causal attention of whole rows without padding is computed here, all other attention by transformers' sdpa.
    """
    length = query.shape[2]
    rows = rows_in(options.get("position_ids") if len(query) == 1 else None, length)
    # Transformers' own masks are boolean. An additive one comes from a caller and says something else.
    packed = (len(rows) > 1 and (options.get("sliding_window") or length) >= length
              and (attention_mask is None or attention_mask.dtype == torch.bool))
    whole = query.shape[2] == key.shape[2] and query.shape[3] == value.shape[3]
    causal = options.get("is_causal", True) in (None, True) and getattr(module, "is_causal", True)
    if (not (whole and causal and (packed or attention_mask is None)) or strange(options) or options.get("dropout")
            or options.get("scaling") is None):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return CausalAttention.apply(query, key, value, options["scaling"], rows).transpose(1, 2).contiguous(), None


class CausalAttention(torch.autograd.Function):
    """softmax(s q k^T + causal mask) v with grouped queries: `heads / groups` adjacent heads share their keys."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float,
                rows: tuple[Row, ...] = ()) -> Tensor:
        """Compute attention: query (lines, heads, seq, size), key and value (lines, groups, seq, size) -> as query.

        `rows` are those that are packed into a line; without them each line is a row.
        """
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.rows = scale, rows or (Row(slice(0, query.shape[2])),)
        heads = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
        return torch.cat([_attention(query[:, :, row.own], _seen(key, row), _seen(value, row), scale)
                          for row in ctx.rows], dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of query, key and value."""
        query, key, value = ctx.saved_tensors
        k, v = key.flatten(0, 1), value.flatten(0, 1)  # (lines * groups, seq, size)
        q, g = (side.reshape(len(k), -1, *k.shape[1:]) for side in (query, upstream))  # (..., heads a group, seq, size)
        to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, row in _blocks(ctx.rows):
            queries, above = (ctx.scale * q[:, :, block]).flatten(1, 2), g[:, :, block].flatten(1, 2)
            keys = _seen(k, row)
            weights = _weights(queries, keys, q.shape[1])
            to_scores = torch._softmax_backward_data(above @ _seen(v, row).mT, weights, -1, weights.dtype)
            to_q[:, :, block] = (to_scores @ keys).mul_(ctx.scale).view_as(to_q[:, :, block])
            for some, of in _parts(row):
                to_k[:, some].baddbmm_(to_scores[..., of].mT, queries)
                to_v[:, some].baddbmm_(weights[..., of].mT, above)
        return to_q.view(query.shape), to_k.view(key.shape), to_v.view(value.shape), None, None


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute causal attention of the last queries of a row with all its keys, by torch's kernel."""
    queries, keys = query.shape[2], key.shape[2]
    mask = None if queries == keys else _future(queries, keys, query.dtype)  # torch aligns the first ones
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scale)


def _seen(side: Tensor, row: Row) -> Tensor:
    """Return the keys or values of a row, (..., positions, size), with those that it shares."""
    own = side[..., row.own, :]
    return torch.cat([side[..., :row.shared, :], own], -2) if row.shared else own


def _parts(row: Row) -> Iterator[tuple[slice, slice]]:
    """Yield the positions in the line of what a row sees, each with its places among the keys of the row."""
    if row.shared:
        yield slice(0, row.shared), slice(0, row.shared)
    yield row.own, slice(row.shared, None)


def _blocks(rows: Iterable[Row]) -> Iterator[tuple[slice, Row]]:
    """Yield blocks of queries, each with the part of its row that at least one of them attends to."""
    for row in rows:
        for start in range(row.own.start, row.own.stop, BLOCK):
            block = slice(start, min(start + BLOCK, row.own.stop))
            yield block, Row(slice(row.own.start, block.stop), row.shared)


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
