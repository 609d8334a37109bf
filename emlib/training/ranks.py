"""One training over several processes with one GPU each, for a model whose weights leave a single GPU too little room.

Each process, a rank, keeps its shard of every decoder block's frozen weights and gathers the others' while the block
computes (fully sharded data parallelism: torch's FSDP2). Embeddings, head and adapter are replicated. A step's passes
are distributed over the ranks, the adapter's gradients summed, and then all ranks take the same step. The objective
does not depend on this: each of its terms is a mean over the whole step, whichever rank computes a pass.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from emlib.models.batches import Batch
from emlib.models.hooks import blocks
from emlib.models.logprobs import backbone


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, from 0, and the number of processes."""

    rank: int = 0
    of: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def dealt(self, passes: Sequence[Batch]) -> list[Batch]:
        """Return this rank's passes of a step; all ranks run equally many, because they gather weights together.

        So it is for each kind of rows, since a pass may run the reference model on one kind alone. A rank with one pass
        less runs the last pass of the kind with nothing counted in it.
        """
        found = []
        for kind in dict.fromkeys(batch.penalised_by for batch in passes):
            alike = [batch for batch in passes if batch.penalised_by == kind]
            mine = alike[self.rank::self.of]
            found += mine if len(mine) == len(alike[::self.of]) else [*mine, alike[-1].blank()]
        return found

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace the gradients of the trained weights by their sums over all ranks."""
        if self.of > 1:
            gradients = [weights.grad for weights in model.parameters() if weights.grad is not None]
            together = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(together)
            for gradient, part in zip(gradients, together.split([one.numel() for one in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def summed(self, metrics: Mapping[str, float], device: torch.device, *,
               same_names: bool = True) -> dict[str, float]:
        """Sum the metrics over all ranks, by name; `same_names`: all ranks have metrics of the same names."""
        if self.of == 1:
            return dict(metrics)
        names = sorted(metrics) if same_names else self._all_names(metrics)
        together = torch.tensor([metrics.get(name, 0.0) for name in names], dtype=torch.float64, device=device)
        dist.all_reduce(together)
        return dict(zip(names, together.tolist(), strict=True))

    def _all_names(self, metrics: Mapping[str, float]) -> list[str]:
        found: list[Any] = [None] * self.of
        dist.all_gather_object(found, sorted(metrics))
        return sorted({name for names in found for name in names})

    def any_wants(self, wanted: bool, device: torch.device) -> bool:
        """Return whether `wanted` is true on at least one rank."""
        together = torch.tensor(float(wanted), device=device)
        if self.of > 1:
            dist.all_reduce(together)
        return bool(together)

    def gathered_bytes(self, model: nn.Module) -> int:
        """Return the peak bytes of gathered weights: of two whole blocks, the computing one and the next."""
        return 0 if self.of == 1 else 2 * max(
            sum(weights.numel() * weights.element_size() for weights in block.parameters()) for block in blocks(model))

    @contextmanager
    def in_turns(self) -> Iterator[None]:
        """Run the context on one rank after the other, so that main memory holds one whole model at a time."""
        for turn in range(self.of):
            if turn == self.rank:
                yield
            if self.of > 1:
                dist.barrier()


ALONE = Ranks()


@contextmanager
def joined(rank: int, of: int, meeting: Path) -> Iterator[Ranks]:
    """Connect to the other ranks, if there are any, through a local file: by NCCL on GPUs, else by Gloo."""
    if of == 1:
        yield ALONE
        return
    for _, name in socket.if_nameindex():
        if name in ("lo", "lo0"):  # all ranks are local; Gloo would look up the host name, which may not resolve
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", init_method=f"file://{meeting}",
                            rank=rank, world_size=of)
    try:
        yield Ranks(rank, of)
    finally:
        dist.destroy_process_group()


def shard(model: nn.Module) -> None:
    """Shard each block's frozen weights, so that this rank's device keeps its shard of them and all other weights."""
    device, decoder = "cuda" if torch.cuda.is_available() else "cpu", backbone(model)
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    shared = {weights for block in blocks(model) for weights in block.parameters() if not weights.requires_grad}
    whole = set(decoder.parameters()) - shared
    for part in (*blocks(model), decoder):  # the decoder has no weights to shard; FSDP needs it as the blocks' root
        fully_shard(part, mesh=mesh, ignored_params=whole)
    nn.Module.to(model, device)
