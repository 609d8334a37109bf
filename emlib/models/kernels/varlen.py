"""On a GPU: causal attention of packed rows, by torch's FlashAttention kernel for rows of different lengths.

    o_i = softmax(s q_i K_i^T + causal mask) V_i             (for each row i of a line, separately)

The kernel is a parameter, so that the rest can be tested without a GPU. It is checked on the model before its first use
(`proof`); if it is missing or fails, rows are padded, and the reason is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from emlib.core.errors import EmlibError
from emlib.models.kernels.packing import OURS, meets_in_attention, rows_in, strange
from emlib.models.kernels.proof import fault
from emlib.models.logprobs import causal_lm


@dataclass(frozen=True)
class Rows:
    """The row boundaries of a line: `ends` (rows + 1), int32, starting with 0; and the length of the longest row."""

    ends: Tensor
    longest: int


# query (tokens, heads, size), key and value (tokens, groups, size), rows, scale, window -> as query. `window` is how
# many positions each attends to, itself included; None: all up to itself.
Kernel = Callable[[Tensor, Tensor, Tensor, Rows, float, int | None], Tensor]
_faults: WeakKeyDictionary[nn.Module, dict[Kernel, str]] = WeakKeyDictionary()


def by_torch(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, window: int | None) -> Tensor:
    """Compute FlashAttention with torch: in half precision, on GPUs from Ampere on."""
    from torch.nn.attention.varlen import varlen_attn  # from torch 2.11 on it has windows

    back = -1 if window is None else window - 1
    out = varlen_attn(query, key, value, rows.ends, rows.ends, rows.longest, rows.longest, scale=scale,
                      window_size=(back, 0), enable_gqa=True)
    assert isinstance(out, Tensor), "varlen_attn returns a tuple only on request"
    return out


@contextmanager
def packed_attention(model: nn.Module, kernel: Kernel = by_torch) -> Iterator[str]:
    """Compute attention of packed rows by `kernel`; if that is impossible, change nothing and yield the reason.

    Transformers still computes attention with padding or a cache.
    """
    reason = _obstacle(model, kernel)
    if reason:
        yield reason
    else:
        with _set(model, kernel):
            yield ""


def _obstacle(model: nn.Module, kernel: Kernel) -> str:
    """Return why rows cannot be packed, or an empty string; computed once for a model, whatever its adapters."""
    found = _faults.setdefault(causal_lm(model), {})
    if kernel not in found:
        found[kernel] = _unsupported(model) or fault(model, lambda: _set(model, kernel))
    return found[kernel]


def _unsupported(model: nn.Module) -> str:
    base: Any = causal_lm(model)
    if base.config._attn_implementation != "sdpa":
        return f"transformers computes attention by '{base.config._attn_implementation}' here"
    if not base._supports_flash_attn:
        return f"according to transformers, {type(base).__name__} does not support FlashAttention"
    if getattr(base.config, "attention_dropout", 0.0):
        return "this model's attention has dropout in training"
    return "" if meets_in_attention(model) else "positions interact outside attention"


@contextmanager
def _set(model: nn.Module, kernel: Kernel) -> Iterator[None]:
    name, config = f"{OURS}{kernel.__name__}", causal_lm(model).config
    AttentionInterface.register(name, partial(attend, kernel=kernel))
    AttentionMaskInterface.register(name, _mask)
    before = config._attn_implementation  # what transformers reads at every pass; its setter loads kernels
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
           kernel: Kernel, **options: Any) -> tuple[Tensor, None]:
    """Compute attention as transformers calls it: 3 x (lines, heads, seq, size) -> (lines, seq, heads, size).

    Raises:
        EmlibError: a line of packed rows needs something that the kernel does not support, and has no mask.
    """
    if attention_mask is not None or not _one_line(len(query), query.shape[2], key.shape[2]):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    wants = [*strange(options), *(["dropout"] if options.get("dropout") else [])]
    if not getattr(module, "is_causal", True) or options.get("is_causal") is False:
        wants.append("attention to later positions")
    if wants or options.get("scaling") is None:
        raise EmlibError(f"{type(module).__name__} needs what packed rows do not support: "
                         f"{', '.join(wants) or 'no scale'}. Set backend.training and backend.scoring to another "
                         "library than 'transformers'.")
    rows = _rows(options.get("position_ids"), query.shape[2], query.device)
    query, key, value = (side[0].transpose(0, 1) for side in (query, key, value))
    return kernel(query, key, value, rows, options["scaling"], options.get("sliding_window"))[None], None


def _one_line(lines: int, queries: int, keys: int) -> bool:
    return lines == 1 and queries == keys


def _mask(*, batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, attention_mask: Tensor | None = None,
          **others: Any) -> Tensor | None:
    """Return no mask if the kernel separates rows itself: a mask would have the square of the line's length."""
    if attention_mask is None and q_offset == 0 and _one_line(batch_size, q_length, kv_length):
        return None
    return sdpa_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset,
                     attention_mask=attention_mask, **others)


@lru_cache(maxsize=1)
def _rows(position_ids: Tensor | None, length: int, device: torch.device) -> Rows:
    """Return a line's rows; cached for all blocks of a pass, because it synchronises with the GPU."""
    spans = [row.own for row in rows_in(position_ids, length)]
    longest = max(span.stop - span.start for span in spans)
    return Rows(torch.tensor([0, *(span.stop for span in spans)], dtype=torch.int32, device=device), longest)
