"""Packed rows: several rows in one line, whose positions restart and which do not attend to each other."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from emlib.models.logprobs import backbone, causal_lm

OURS = "emlib_"  # prefix of the names of attention functions that support packed rows
# The options, besides queries, keys, values and mask, of the attention that we compute; any other option, such as a cap
# on scores, means a different attention.
KNOWN = {"scaling", "dropout", "sliding_window", "is_causal", "position_ids", "use_cache", "past_key_values"}


def packs(model: nn.Module) -> bool:
    """Return whether `model` keeps packed rows separate, at no more cost than single rows.

    That holds while one of our attention functions is active, if positions interact only in attention.
    """
    return causal_lm(model).config._attn_implementation.startswith(OURS) and meets_in_attention(model)


def meets_in_attention(model: nn.Module) -> bool:
    """Return whether every block has attention; that positions interact nowhere else is not checked."""
    blocks = getattr(backbone(model), "layers", ())
    return len(blocks) > 0 and all(hasattr(block, "self_attn") for block in blocks)


def starts(position_ids: Tensor | None, length: int) -> tuple[int, ...]:
    """Return where rows begin in a line of `length` positions: at 0, and where `position_ids`, (1, length), restart."""
    if position_ids is None or position_ids.shape != (1, length):
        return (0,)
    found = (position_ids[0] == 0).nonzero().flatten().tolist()
    return tuple(found) if found and found[0] == 0 else (0, *found)


def strange(options: dict[str, Any]) -> list[str]:
    """Return the options that mean a different attention."""
    return sorted(name for name, option in options.items() if option is not None and name not in KNOWN)
