"""Packed rows: several rows in one line, whose positions restart and which do not attend to each other.

Rows that begin with the same tokens, such as a system prompt, may share them: the first row is whole, and the positions
of each other row begin where it differs. It attends to the beginning of the first row and to itself.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

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
    """Return whether every block has attention; `proof` checks that positions interact nowhere else."""
    blocks = getattr(backbone(model), "layers", ())
    return len(blocks) > 0 and all(hasattr(block, "self_attn") for block in blocks)


class Row(NamedTuple):
    """A row in a line: its own positions, and how many tokens it shares with the beginning of the line."""

    own: slice
    shared: int = 0


def rows_in(position_ids: Tensor | None, length: int) -> tuple[Row, ...]:
    """Return the rows in a line of `length` positions: one begins where `position_ids`, (1, length), do not go on."""
    if position_ids is None or position_ids.shape != (1, length):
        return (Row(slice(0, length)),)
    places = position_ids[0]
    begun = [0, *((places.diff() != 1).nonzero().flatten() + 1).tolist()]
    shared = [0, *places[begun[1:]].tolist()]
    return tuple(Row(slice(*ends), place) for ends, place in zip(pairwise([*begun, length]), shared, strict=True))


def strange(options: dict[str, Any]) -> list[str]:
    """Return the options that mean a different attention."""
    return sorted(name for name, option in options.items() if option is not None and name not in KNOWN)
