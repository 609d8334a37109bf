"""Reading prompts, and continuing them token by token with the model's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from emlib.models.logprobs import backbone, head


class Continuation(Protocol):
    """Rows that are continued together. Finished rows may leave it."""

    def logits(self) -> Tensor:
        """Compute the logits of each row's next token: (rows, vocabulary)."""

    def take(self, tokens: Tensor) -> None:
        """Append a token to each row: (rows,)."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows only, by their places."""


class Prompts:
    """Prompts that were read once each, however many rows continue one.

    Prompts are padded on the left, so that all rows continue at the same position.

    Attributes:
        hidden: the last hidden state of each prompt, (prompts, hidden).
        cache: the keys and values of all positions.
        attention: 1 at positions other than padding, (prompts, length).
        of_row: the place of each row's prompt.
    """

    def __init__(self, model: nn.Module, rows: Sequence[tuple[int, ...]]) -> None:
        device = next(model.parameters()).device
        prompts = list(dict.fromkeys(rows))
        length = max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        padding = torch.tensor([length - len(prompt) for prompt in prompts], device=device)
        self.attention = (torch.arange(length, device=device) >= padding[:, None]).long()
        self.cache = DynamicCache()
        positions = (self.attention.cumsum(1) - 1).clamp(min=0)
        self.hidden = backbone(model)(
            input_ids=ids, attention_mask=self.attention, position_ids=positions, past_key_values=self.cache,
            use_cache=True).last_hidden_state[:, -1]
        index = {prompt: number for number, prompt in enumerate(prompts)}
        self.of_row = torch.tensor([index[row] for row in rows], device=device)


class ByModel:
    """A continuation by the model's own forward pass, under whatever acts in it."""

    def __init__(self, model: nn.Module, prompts: Prompts) -> None:
        self.model, self.cache = model, prompts.cache
        self.hidden, self.attention = prompts.hidden[prompts.of_row], prompts.attention[prompts.of_row]
        self.cache.batch_select_indices(prompts.of_row)

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
        self.cache.batch_select_indices(rows)
        self.hidden, self.attention = self.hidden[rows], self.attention[rows]
