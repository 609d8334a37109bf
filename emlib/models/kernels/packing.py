"""Rows that stand one after the other in one line, packed: their positions begin anew, and none sees another."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from emlib.models.logprobs import backbone, causal_lm

OURS = "emlib_"  # how transformers' names of attention that takes packed rows begin
# What transformers tells an attention function beside queries, keys, values and mask; whatever else it may say, such
# as a cap on scores, asks for another attention.
KNOWN = {"scaling", "dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "past_key_values"}


def packs(model: nn.Module) -> bool:
    """Whether rows packed into one line cost `model` no more than rows that go alone, and stay apart.

    That is so while attention of ours lasts, if attention is all in which positions of its blocks meet.
    """
    return causal_lm(model).config._attn_implementation.startswith(OURS) and meets_in_attention(model)


def meets_in_attention(model: nn.Module) -> bool:
    """Whether every block has attention, which is where its positions meet; it may be that they meet elsewhere too."""
    blocks = getattr(backbone(model), "layers", ())
    return len(blocks) > 0 and all(hasattr(block, "self_attn") for block in blocks)


def starts(position_ids: Tensor | None, length: int) -> tuple[int, ...]:
    """Where rows begin in a line of `length` positions: at 0 alone, unless `position_ids`, (1, length), begin anew."""
    if position_ids is None or position_ids.shape != (1, length):
        return (0,)
    found = (position_ids[0] == 0).nonzero().flatten().tolist()
    return tuple(found) if found and found[0] == 0 else (0, *found)


def strange(options: dict[str, Any]) -> list[str]:
    """What an attention function was told that asks for another attention."""
    return sorted(name for name, option in options.items() if option is not None and name not in KNOWN)
