"""The reference model's last hidden states, or projections of its layers' outputs, on disk.

A sweep over weights and seeds then computes them once. Each shard of rows is one safetensors file: an interruption
loses only the current shard, and a row can be read without the others. A row is found by its content, in any order or
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from emlib.core.errors import StoreError
from emlib.core.progress import bar
from emlib.data.chat import Encoded
from emlib.models import tensors
from emlib.models.adapters import adapter_off
from emlib.models.batches import Batch, forward_batches
from emlib.models.hooks import capture_activations, first_blocks
from emlib.models.kernels import fitted

ROWS_A_SHARD = 64


def compared(batch: Batch, tokens: Literal["all", "response"]) -> Tensor:
    """Return a mask of the positions whose next-token distributions are compared, (lines, seq)."""
    return batch.attended if tokens == "all" else batch.predicts


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """Compute the reference model's hidden states after its final norm, without gradient: (lines, seq, hidden)."""
    with torch.no_grad(), adapter_off(model):
        return batch.hidden(model)


def projections(model: nn.Module, batch: Batch, directions: Mapping[int, Tensor]) -> Tensor:
    """Compute the projections of layers' outputs in the reference model onto a direction each: (lines, seq, layers)."""
    with (torch.no_grad(), adapter_off(model), first_blocks(model, max(directions)),
          capture_activations(model, list(directions)) as outputs):
        batch.hidden(model)
    return torch.stack([outputs[layer].float() @ directions[layer].to(outputs[layer].device)
                        for layer in directions], dim=-1)


def keep(model: nn.Module, rows: Sequence[Encoded], tokens: Literal["all", "response"], batch_size: int,
         folder: Path) -> int:
    """Write the hidden states of all rows at compared positions, skipping those on disk; return the bytes on disk."""
    return _keep(model, rows, lambda batch: (hidden_states(model, batch), compared(batch, tokens)), batch_size, folder)


def keep_projections(model: nn.Module, rows: Sequence[Encoded], directions: Mapping[int, Tensor], batch_size: int,
                     folder: Path) -> int:
    """Write the projections of all rows at all positions, as `keep` does."""
    return _keep(model, rows, lambda batch: (projections(model, batch, directions), batch.attended), batch_size, folder)


def _keep(model: nn.Module, rows: Sequence[Encoded], compute: Callable[[Batch], tuple[Tensor, Tensor]],
          batch_size: int, folder: Path) -> int:
    """Write what `compute` returns of each batch, (lines, seq, width), at the positions of its mask, (lines, seq)."""
    different = list({row.key: row for row in rows}.values())
    starts = range(0, len(different), ROWS_A_SHARD)
    for start in bar(starts, "reference", "shard", total=len(starts)):
        path = folder / f"shard-{start // ROWS_A_SHARD:05d}.safetensors"
        if path.is_file() and tensors.is_whole(path):
            continue
        states: dict[str, Tensor] = {}
        with fitted(model):  # as in training, so that its numbers differ by the rounding of other passes alone
            for batch in forward_batches(different[start:start + ROWS_A_SHARD], batch_size, model):
                values, used = compute(batch)
                states |= {key: values[place][used[place]].cpu()
                           for key, place in zip(batch.keys, batch.spans, strict=True)}
        tensors.save(path, states)
    return sum(path.stat().st_size for path in folder.glob("shard-*.safetensors"))


class StoredReference:
    """What `keep` or `keep_projections` wrote, read a row at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = [safe_open(path, framework="pt") for path in sorted(folder.glob("shard-*.safetensors"))]
        self.shard_of = {key: shard for shard in self.shards for key in shard.keys()}  # noqa: SIM118

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredReference:
        """Return itself: it only reads, so that copies of a defense share it."""
        return self

    def of(self, batch: Batch) -> Tensor:
        """Return the states of a batch's rows, concatenated: (compared tokens, hidden)."""
        return torch.cat(self.by_row(batch.keys) or [torch.empty(0, 0)]).to(batch.input_ids.device)

    def by_row(self, keys: Sequence[str]) -> list[Tensor]:
        """Return what was written of each row, (positions, width); `keys` are those of the rows.

        Raises:
            StoreError: a row is missing.
        """
        missing = [key for key in keys if key not in self.shard_of]
        if missing:
            raise StoreError(f"{self.folder}: the reference states of {len(missing)} of {len(keys)} rows are "
                             "missing; the folder belongs to other rows. Delete it and run again to compute them.")
        return [self.shard_of[key].get_tensor(key) for key in keys]
