"""On a GPU: causal attention of packed rows, by FlashAttention's kernel for rows of unlike length, which torch has.

    o_i = softmax(s q_i K_i^T + causal mask) V_i             (of each row i of a line; none sees another)

The kernel is a parameter, so that all but itself is tested where there is no GPU. It is proved on the model at hand
before it is first used (`proof`); where it cannot be had or fails, rows stay padded, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from emlib.core.errors import EmlibError
from emlib.models.kernels.packing import OURS, meets_in_attention, starts, strange
from emlib.models.kernels.proof import fault
from emlib.models.logprobs import causal_lm


@dataclass(frozen=True)
class Rows:
    """Where the rows of a line end: `ends` (rows + 1), int32, from 0 on; and how long the longest is."""

    ends: Tensor
    longest: int


# query (tokens, heads, size), key and value (tokens, groups, size), rows, scale, window -> as query. `window` is how
# many positions each sees, itself included; None: all up to itself.
Kernel = Callable[[Tensor, Tensor, Tensor, Rows, float, int | None], Tensor]
_faults: WeakKeyDictionary[nn.Module, dict[Kernel, str]] = WeakKeyDictionary()


def by_torch(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, window: int | None) -> Tensor:
    """FlashAttention as torch has it: in half precision, on GPUs from Ampere on."""
    from torch.nn.attention.varlen import varlen_attn  # from torch 2.11 on it has windows

    back = -1 if window is None else window - 1
    out = varlen_attn(query, key, value, rows.ends, rows.ends, rows.longest, rows.longest, scale=scale,
                      window_size=(back, 0), enable_gqa=True)
    assert isinstance(out, Tensor), "nothing else was asked for"
    return out


@contextmanager
def packed_attention(model: nn.Module, kernel: Kernel = by_torch) -> Iterator[str]:
    """Attention of packed rows by `kernel`; yields why they do not go packed, and changes nothing then.

    Attention with padding or a cache stays transformers'.
    """
    why = _why_not(model, kernel)
    if why:
        yield why
    else:
        with _set(model, kernel):
            yield ""


def _why_not(model: nn.Module, kernel: Kernel) -> str:
    """Found once for a model, whatever adapters it has."""
    found = _faults.setdefault(causal_lm(model), {})
    if kernel not in found:
        found[kernel] = _against(model) or fault(model, lambda: _set(model, kernel))
    return found[kernel]


def _against(model: nn.Module) -> str:
    base: Any = causal_lm(model)
    if base.config._attn_implementation != "sdpa":
        return f"transformers computes attention by '{base.config._attn_implementation}' here"
    if not base._supports_flash_attn:
        return f"transformers says that FlashAttention cannot compute what {type(base).__name__} attends to"
    if getattr(base.config, "attention_dropout", 0.0):
        return "this model's attention has dropout in training"
    return "" if meets_in_attention(model) else "positions meet elsewhere than in attention"


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
    """Attention as transformers calls it: (lines, heads, seq, size) thrice -> (lines, seq, heads, size).

    Raises:
        EmlibError: a line of packed rows asks for what the kernel does not do; transformers was given no mask for it.
    """
    if attention_mask is not None or not _one_line(len(query), query.shape[2], key.shape[2]):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    wants = [*strange(options), *(["dropout"] if options.get("dropout") else [])]
    if not module.is_causal or options.get("is_causal") is False:
        wants.append("sight of what comes later")
    if wants or options.get("scaling") is None:
        raise EmlibError(f"{type(module).__name__} asks for what packed rows cannot have: "
                         f"{', '.join(wants) or 'no scale'}. Set backend.training and backend.scoring to another "
                         "library than 'transformers'.")
    rows = _rows(options.get("position_ids"), query.shape[2], query.device)
    query, key, value = (side[0].transpose(0, 1) for side in (query, key, value))
    return kernel(query, key, value, rows, options["scaling"], options.get("sliding_window"))[None], None


def _one_line(lines: int, queries: int, keys: int) -> bool:
    return lines == 1 and queries == keys


def _mask(*, batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, attention_mask: Tensor | None = None,
          **others: Any) -> Tensor | None:
    """None where the kernel tells rows apart by itself: their mask would hold the square of a line's length."""
    if attention_mask is None and q_offset == 0 and _one_line(batch_size, q_length, kv_length):
        return None
    return sdpa_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset,
                     attention_mask=attention_mask, **others)


@lru_cache(maxsize=1)
def _rows(position_ids: Tensor | None, length: int, device: torch.device) -> Rows:
    """Of a line. All blocks of a pass are given the same positions, and this waits for the GPU: so once a pass."""
    ends = (*starts(position_ids, length), length)
    longest = max(end - start for start, end in pairwise(ends))
    return Rows(torch.tensor(ends, dtype=torch.int32, device=device), longest)
