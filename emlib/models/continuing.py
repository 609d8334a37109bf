"""Continuing prompts token by token, with the model's own forward pass."""

from __future__ import annotations

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from emlib.models.logprobs import backbone, head
from emlib.models.prompts import Read


class Continuation(Protocol):
    """Rows that are continued together. Finished rows may leave it."""

    def logits(self) -> Tensor:
        """Compute the logits of each row's next token: (rows, vocabulary)."""

    def take(self, tokens: Tensor) -> None:
        """Append a token to each row: (rows,)."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows only, by their places."""


class ByModel:
    """A continuation by the model's own forward pass, under whatever acts in it; `of_row` is each row's prompt."""

    def __init__(self, model: nn.Module, read: Read, of_row: Tensor) -> None:
        self.model, self.cache = model, read.cache
        self.hidden, self.attention = read.last[of_row], read.attended[of_row].long()
        _select(self.cache, of_row)

    def logits(self) -> Tensor:
        """Compute the logits at the last position only."""
        return head(self.model)(self.hidden)

    def take(self, tokens: Tensor) -> None:
        """Run the model over one more position."""
        self.attention = F.pad(self.attention, (0, 1), value=1)
        positions = self.attention.sum(1, keepdim=True) - 1
        self.hidden = backbone(self.model)(
            input_ids=tokens[:, None], attention_mask=self.attention, position_ids=positions,
            past_key_values=self.cache, use_cache=True).last_hidden_state[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the cache."""
        _select(self.cache, rows)
        self.hidden, self.attention = self.hidden[rows], self.attention[rows]


def _select(cache: Any, rows: Tensor) -> None:
    """Keep these rows, by their places, with transformers' one selection that layers of every kind have."""
    cache.reorder_cache(rows)
