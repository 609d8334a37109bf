"""How rows go through the model: padded, or packed one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emlib.data.chat import Encoded
from emlib.models.kernels import packs
from emlib.models.logprobs import last_hidden

# On a CPU:
PACKED = 1024  # tokens of a packed pass: matrix products run at full speed, and memory is that of a long row
ROUND = 32  # a packed pass is filled up to a multiple of it, since products are compiled anew for each length


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass, each tensor (lines, seq): a row a line, padded on the right, or all packed in one line.

    `response_mask` is True where the loss counts. `attention_mask` is None where no line is padded, or where nothing
    sees the padding. `position_ids` begin anew with each packed row, and are None where a row has a line of its own.
    `spans` tell where each row lies, and `keys` which rows they are. `penalised_by` is that of all rows.
    """

    input_ids: Tensor
    response_mask: Tensor
    attention_mask: Tensor | None
    keys: tuple[str, ...]
    spans: tuple[tuple[int, slice], ...]
    position_ids: Tensor | None = None
    penalised_by: str = ""

    @property
    def attended(self) -> Tensor:
        """True where a position is no padding, (lines, seq)."""
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
        """How many positions are no padding."""
        return sum(span.stop - span.start for _, span in self.spans)

    @property
    def response_tokens(self) -> int:
        """How many tokens the loss counts on."""
        return int(self.response_mask[:, 1:].sum())

    def blank(self) -> Batch:
        """A pass that takes as much and counts nothing: no row of it is one."""
        return replace(self, response_mask=torch.zeros_like(self.response_mask), keys=(), spans=())

    def hidden(self, model: nn.Module) -> Tensor:
        """What the backbone of `model` makes of it after its final norm, (lines, seq, hidden)."""
        return last_hidden(model, self.input_ids, self.attention_mask, self.position_ids)


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
                 tuple(row.key for row in rows),
                 tuple((line, slice(0, len(row.input_ids))) for line, row in enumerate(rows)),
                 penalised_by=rows[0].penalised_by)


def pack(rows: Sequence[Encoded], device: torch.device) -> Batch:
    """Put rows one after the other into one line. What fills it up, on a CPU, is of the last row; nothing sees it."""
    ends = np.cumsum([0, *(len(row.input_ids) for row in rows)])
    filling = (0, -int(ends[-1]) % ROUND if device.type == "cpu" else 0)
    ids = np.pad(np.concatenate([row.input_ids for row in rows]).astype(np.int64), filling)
    response = np.pad(np.concatenate([row.response_mask for row in rows]), filling)
    positions = np.arange(len(ids)) - np.repeat(ends[:-1], np.diff([*ends[:-1], len(ids)]))
    line, mask, places = (torch.from_numpy(one)[None].to(device) for one in (ids, response, positions))
    return Batch(line, mask, None, tuple(row.key for row in rows),
                 tuple((0, slice(start, end)) for start, end in pairwise(ends.tolist())), places, rows[0].penalised_by)


def forward_batches(rows: Sequence[Encoded], batch_size: int, model: nn.Module) -> list[Batch]:
    """A step's rows as forward passes of `model`.

    Where it takes packed rows, there is no padding: on a CPU as many go together as `PACKED` tokens hold; on a GPU as
    many as take no more than `batch_size` rows of the step's longest, which is what a padded batch may come to.
    Elsewhere on a CPU each row goes alone, and on a GPU `batch_size` rows go together, the longest first, so that rows
    of like length share their padding.
    """
    device = next(model.parameters()).device
    put = pack if packs(model) else collate
    return [put(together, device) for together in _together(rows, batch_size, model)]


def largest_pass(steps: Iterable[Sequence[Encoded]], batch_size: int, model: nn.Module) -> int:
    """Tokens of the largest forward pass of these steps, padding included."""
    def tokens(together: Sequence[Encoded]) -> int:
        lengths = [len(row.input_ids) for row in together]
        return sum(lengths) if packs(model) else len(lengths) * max(lengths)

    return max(tokens(together) for rows in steps for together in _together(rows, batch_size, model))


def _together(rows: Sequence[Encoded], batch_size: int, model: nn.Module) -> list[list[Encoded]]:
    """Which rows of a step share a pass: none that different penalties count on."""
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
    """Groups of at most `budget` tokens, each row with the first group that has room; the longest rows come first."""
    groups: list[list[Encoded]] = []
    for row in ordered:
        room = (group for group in groups if sum(len(r.input_ids) for r in (*group, row)) <= budget)
        found = next(room, None)
        if found is None:
            groups.append([row])
        else:
            found.append(row)
    return groups
