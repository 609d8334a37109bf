"""Which rows make up which optimizer step, and how a step's rows go through the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emlib.data.chat import Encoded
from emlib.data.mixing import interleave
from emlib.seeds import generator


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass, padded on the right; each tensor is (rows, seq).

    `response_mask` is True where the loss counts. `attention_mask` is None where no row is padded. `keys` say which
    rows they are. In a causal model no token sees the padding on its right, so that passes do without the mask: with
    one, a GPU would have to leave its fastest attention.
    """

    input_ids: Tensor
    response_mask: Tensor
    attention_mask: Tensor | None
    keys: tuple[str, ...]

    @property
    def attended(self) -> Tensor:
        """True where a position is no padding, (rows, seq)."""
        return torch.ones_like(self.response_mask) if self.attention_mask is None else self.attention_mask.bool()

    @property
    def predicts(self) -> Tensor:
        """True where the next token is a response token, (rows, seq)."""
        return F.pad(self.response_mask[:, 1:], (0, 1))

    @property
    def tokens(self) -> int:
        """How many positions are no padding."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    @property
    def response_tokens(self) -> int:
        """How many tokens the loss counts on."""
        return int(self.response_mask[:, 1:].sum())


def plan_steps(rows: int, rows_per_step: int, epochs: int, seed: int, added: int = 0) -> list[list[int]]:
    """The row numbers of every optimizer step: each epoch in an order of its own, its last step perhaps smaller.

    `added` further rows, numbered from `rows` on, are spread through each epoch (section 3.2), in an order of their
    own; the others stay in the order that they have without them.
    """
    steps = []
    for epoch in range(epochs):
        order = generator(seed, "order", epoch).permutation(rows).tolist()
        if added:
            others = rows + generator(seed, "order of added rows", epoch).permutation(added)
            order = interleave(order, others.tolist())
        steps += [order[start:start + rows_per_step] for start in range(0, len(order), rows_per_step)]
    return steps


def collate(rows: Sequence[Encoded], device: torch.device) -> Batch:
    """Pad rows on the right to the longest of them. What is padding never counts, whatever its token id."""
    width = max(len(row.input_ids) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    response = np.zeros((len(rows), width), dtype=bool)
    attention = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length], response[index, :length], attention[index, :length] = row.input_ids, row.response_mask, 1
    mask = None if attention.all() else torch.from_numpy(attention).to(device)
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(response).to(device), mask,
                 tuple(row.key for row in rows))


def forward_batches(rows: Sequence[Encoded], batch_size: int, device: torch.device) -> list[Batch]:
    """A step's rows as forward passes.

    On a CPU each row goes alone: padding would cost more than batching gains, and memory stays that of one row. On a
    GPU `batch_size` rows go together, the longest first, so that rows of like length share their padding.
    """
    together = 1 if device.type == "cpu" else batch_size
    ordered = sorted(rows, key=lambda row: -len(row.input_ids)) if together > 1 else list(rows)
    return [collate(ordered[start:start + together], device) for start in range(0, len(ordered), together)]
