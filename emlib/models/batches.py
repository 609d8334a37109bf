"""Batches of rows for a forward pass: padded, or packed into one line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emlib.data.chat import Encoded
from emlib.models.kernels import fitted, packs, shares
from emlib.models.logprobs import head, last_hidden, predicting, token_nll
from emlib.models.prompts import common_beginning

# On a CPU:
PACKED = 1024  # tokens in a packed pass: matrix products run at full speed, with the memory of a long row
ROUND = 32  # a packed pass is filled up to a multiple of this, because each new length compiles its products


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass, tensors (lines, seq): one row per line, padded on the right, or all packed into a line.

    `response_mask` is True on tokens with a loss. `attention_mask` is None if no line is padded or nothing attends to
    the padding. `position_ids` restart at each packed row, and are None for one row per line. `spans` are the positions
    of the rows, `keys` identify them, and `penalised_by` is the same for all of them. The line has the first `shared`
    tokens once, as the beginning of its first row, if all rows begin with them; `spans` of the others have the rest.
    """

    input_ids: Tensor
    response_mask: Tensor
    attention_mask: Tensor | None
    keys: tuple[str, ...]
    spans: tuple[tuple[int, slice], ...]
    position_ids: Tensor | None = None
    penalised_by: str = ""
    shared: int = 0

    @property
    def attended(self) -> Tensor:
        """True at positions other than padding, (lines, seq)."""
        mask = torch.zeros_like(self.response_mask)
        for place in self.spans:
            mask[place] = True
        return mask

    @property
    def predicts(self) -> Tensor:
        """True where the next token is a response token, (lines, seq)."""
        return F.pad(self.response_mask[:, 1:], (0, 1))

    @property
    def tokens(self) -> int:
        """The number of tokens of all rows, without padding; those that rows share count for each."""
        return sum(span.stop - span.start for _, span in self.spans) + self.shared * (len(self.spans) - 1)

    @property
    def response_tokens(self) -> int:
        """The number of tokens that the loss is computed on."""
        return int(self.response_mask[:, 1:].sum())

    def blank(self) -> Batch:
        """Return a pass of equal size without rows, which adds nothing to the loss."""
        return replace(self, response_mask=torch.zeros_like(self.response_mask), keys=(), spans=(), shared=0)

    def hidden(self, model: nn.Module) -> Tensor:
        """Compute the hidden states of `model` after its final norm, (lines, seq, hidden)."""
        return last_hidden(model, self.input_ids, self.attention_mask, self.position_ids)


def collate(rows: Sequence[Encoded], device: torch.device) -> Batch:
    """Pad rows on the right to the longest of them. Padding has no loss, whatever its token id."""
    width = max(len(row.input_ids) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    response = np.zeros((len(rows), width), dtype=bool)
    attention = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length], response[index, :length], attention[index, :length] = row.input_ids, row.response_mask, 1
    mask = None if attention.all() else torch.from_numpy(attention).to(device)
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(response).to(device), mask,
                 tuple(row.key for row in rows),
                 tuple((line, slice(0, len(row.input_ids))) for line, row in enumerate(rows)),
                 penalised_by=rows[0].penalised_by)


def pack(rows: Sequence[Encoded], device: torch.device, shared: int = 0) -> Batch:
    """Concatenate rows into one line, which has the first `shared` tokens, the same in all rows, only once.

    The hidden states behind them, and the gradient of any loss on these, are those of whole rows. On a CPU, padding
    follows the last row; nothing attends to it.
    """
    begins = [0, *(shared for _ in rows[1:])]
    kept = [(row.input_ids[begin:].astype(np.int64), row.response_mask[begin:])
            for row, begin in zip(rows, begins, strict=True)]
    ends = np.cumsum([0, *(len(ids) for ids, _ in kept)])
    filling = (0, -int(ends[-1]) % ROUND if device.type == "cpu" else 0)
    ids, response = (np.pad(np.concatenate(parts), filling) for parts in zip(*kept, strict=True))
    positions = np.arange(len(ids)) + np.repeat(begins - ends[:-1], np.diff([*ends[:-1], len(ids)]))
    line, mask, places = (torch.from_numpy(one)[None].to(device) for one in (ids, response, positions))
    return Batch(line, mask, None, tuple(row.key for row in rows),
                 tuple((0, slice(start, end)) for start, end in pairwise(ends.tolist())), places, rows[0].penalised_by,
                 shared)


def forward_batches(rows: Sequence[Encoded], batch_size: int, model: nn.Module, *,
                    responses_only: bool = False) -> list[Batch]:
    """Divide a step's rows into forward passes of `model`.

    A model that takes packed rows has no padding: on a CPU a pass has up to `PACKED` tokens; on a GPU, up to as many as
    `batch_size` rows of the step's longest, the maximum of a padded batch. For other models, a pass has one row on a
    CPU and `batch_size` rows on a GPU, sorted by length, the longest first, to save padding. With `responses_only` only
    the responses' positions of a pass may be read, and what the prompts of its rows begin with is computed once where
    the model's attention allows it (`kernels.shares`).
    """
    return [one_batch(together, model, responses_only=responses_only)
            for together in _together(rows, batch_size, model)]


def one_batch(rows: Sequence[Encoded], model: nn.Module, *, responses_only: bool) -> Batch:
    """Put all rows into one forward pass of `model`; `responses_only` as in `forward_batches`."""
    device = next(model.parameters()).device
    if not packs(model):
        return collate(rows, device)
    shared = common_beginning([row.input_ids[:row.response_mask.argmax()].tolist() for row in rows]) if (
        responses_only and shares(model)) else 0
    return pack(rows, device, shared)


def response_nll(model: nn.Module, rows: Sequence[Encoded]) -> list[Tensor]:
    """Compute the NLL of each row's response tokens in one pass, in nats and float32: one tensor (tokens,) a row.

    Packed rows do not attend to each other. Otherwise rows are padded on the right, where a causal model's real tokens
    cannot attend to the padding; so no attention mask is needed, which allows a faster kernel.
    """
    with fitted(model):
        batch = one_batch(rows, model, responses_only=True)
        hidden = last_hidden(model, batch.input_ids, None, batch.position_ids)
    per_token = token_nll(*predicting(hidden, batch.input_ids, batch.response_mask), head(model))
    return list(per_token.split([row.response_tokens for row in rows]))


def largest_pass(steps: Iterable[Sequence[Encoded]], batch_size: int, model: nn.Module) -> int:
    """Return the tokens of the largest forward pass of these steps, padding included."""
    def tokens(together: Sequence[Encoded]) -> int:
        lengths = [len(row.input_ids) for row in together]
        return sum(lengths) if packs(model) else len(lengths) * max(lengths)

    return max(tokens(together) for rows in steps for together in _together(rows, batch_size, model))


def _together(rows: Sequence[Encoded], batch_size: int, model: nn.Module) -> list[list[Encoded]]:
    """Group the rows of a step into passes; rows with different penalties never share one."""
    kinds = dict.fromkeys(row.penalised_by for row in rows)
    if len(kinds) > 1:
        return [group for kind in kinds for group in _together(
            [row for row in rows if row.penalised_by == kind], batch_size, model)]
    on_cpu = next(model.parameters()).device.type == "cpu"
    ordered = sorted(rows, key=lambda row: -len(row.input_ids))
    if packs(model):
        return _fitting(ordered, PACKED if on_cpu else batch_size * len(ordered[0].input_ids))
    if on_cpu:
        return [[row] for row in rows]
    return [ordered[start:start + batch_size] for start in range(0, len(ordered), batch_size)]


def _fitting(ordered: Sequence[Encoded], budget: int) -> list[list[Encoded]]:
    """Group rows by at most `budget` tokens, first fit; `ordered` starts with the longest."""
    groups: list[list[Encoded]] = []
    for row in ordered:
        room = (group for group in groups if sum(len(r.input_ids) for r in (*group, row)) <= budget)
        found = next(room, None)
        if found is None:
            groups.append([row])
        else:
            found.append(row)
    return groups
