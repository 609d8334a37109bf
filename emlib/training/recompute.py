"""Gradient checkpointing on demand: the memory of saved activations is measured on two rows of the run, not guessed.

    needed = (bytes saved per token) x (tokens of the largest pass) + the head's logits + gradients and moments

Saved activations grow linearly with the tokens, for any model, adapter, defenses and kernels, so one short and one long
row determine them. Where `needed` exceeds the device's free memory, only each block's input is saved, and the block is
computed again in the backward pass: about a quarter more arithmetic, and results that differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from emlib.config import Training
from emlib.data.chat import Encoded
from emlib.models.batches import forward_batches, largest_pass
from emlib.training.budget import MARGIN
from emlib.training.head import head_bytes
from emlib.training.objective import Objective, Totals
from emlib.training.ranks import ALONE, Ranks

ADAM = 3  # numbers per trained parameter: its gradient and two moments
MEASURED = ("cuda",)  # devices whose memory is measured; a pass on a CPU is small
GIB = 2**30


@dataclass(frozen=True)
class Recompute:
    """Whether gradient checkpointing is used, and why."""

    wanted: bool
    reason: str

    @property
    def summary(self) -> str:
        """The entry of the training summary."""
        return f"{'yes' if self.wanted else 'no'}: {self.reason}"


@contextmanager
def recomputing(model: nn.Module, rows: Sequence[Encoded], steps: Sequence[Sequence[int]], settings: Training,
                objective: Objective, ranks: Ranks = ALONE) -> Iterator[Recompute]:
    """Switch on gradient checkpointing if the settings say so, or with `auto` if memory requires it; undone at the end.

    `rows` are the training rows, and `steps` the indices of each step's rows. The model must be in training mode.
    """
    choice = _choice(model, rows, steps, settings, objective, ranks)
    if choice.wanted:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    try:
        yield choice
    finally:
        if choice.wanted:
            model.gradient_checkpointing_disable()  # type: ignore[operator]


def _choice(model: nn.Module, rows: Sequence[Encoded], steps: Sequence[Sequence[int]], settings: Training,
            objective: Objective, ranks: Ranks) -> Recompute:
    if settings.gradient_checkpointing != "auto":
        return Recompute(settings.gradient_checkpointing, "as the settings say")
    device = next(model.parameters()).device
    if device.type not in MEASURED:
        return Recompute(False, "passes are small where there is no GPU")
    try:
        needed = bytes_needed(model, rows, steps, settings, objective) + ranks.gathered_bytes(model)
    except torch.OutOfMemoryError:
        if ranks.of > 1:
            raise  # the other ranks are in the middle of this pass
        model.zero_grad()
        return Recompute(True, "a row alone does not fit into memory otherwise")
    choice = decide(needed, free_bytes(device))
    return replace(choice, wanted=ranks.any_wants(choice.wanted, device))


def decide(needed: float, free: float) -> Recompute:
    """Choose gradient checkpointing where `needed`, with a margin, exceeds `free`; both in bytes."""
    return Recompute(needed * MARGIN > free, f"the largest pass needs {needed / GIB:.2f} GiB beside the weights, and "
                                             f"{free / GIB:.2f} are free")


def bytes_needed(model: nn.Module, rows: Sequence[Encoded], steps: Sequence[Sequence[int]], settings: Training,
                 objective: Objective) -> float:
    """Estimate the memory, beside the weights, of training without gradient checkpointing."""
    tokens = largest_pass(([rows[index] for index in step] for step in steps), settings.batch_size, model)
    trained = sum(weights.nbytes for weights in model.parameters() if weights.requires_grad)
    return (bytes_per_token(model, rows, objective) * tokens + head_bytes(model, objective.compares_in_head)
            + ADAM * trained)


def bytes_per_token(model: nn.Module, rows: Sequence[Encoded], objective: Objective) -> float:
    """Measure the bytes of saved activations per token, from the shortest and the longest of these rows."""
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    few, many = _saved_bytes(model, ordered[0], objective), _saved_bytes(model, ordered[-1], objective)
    short, long = len(ordered[0].input_ids), len(ordered[-1].input_ids)
    return (many - few) / (long - short) if long >= 1.5 * short else many / long


def _saved_bytes(model: nn.Module, row: Encoded, objective: Objective) -> int:
    """Measure the saved activations of a training pass of one row, in bytes. Its gradient is dropped."""
    [batch] = forward_batches([row], 1, model)
    with saved_activations(model) as saved:
        objective.backward(model, batch, Totals.of([batch]))
    model.zero_grad()
    return sum(saved.values())


@contextmanager
def saved_activations(model: nn.Module) -> Iterator[dict[int, int]]:
    """Record the bytes that autograd saves, by address: each storage once, without the model's weights."""
    saved: dict[int, int] = {}
    own = _addresses(model)
    sharded = any(hasattr(weights, "to_local") for weights in model.parameters())

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in (_addresses(model) if sharded else own):
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def _addresses(model: nn.Module) -> set[int]:
    """Return the addresses of the weights; sharded ones (DTensors) have one only while their block computes."""
    return {weights.untyped_storage().data_ptr() for weights in (*model.parameters(), *model.buffers())
            if not hasattr(weights, "to_local")}


def free_bytes(device: torch.device) -> float:
    """Return a GPU's free memory: unallocated, or reserved by torch and unused."""
    unallocated, _ = torch.cuda.mem_get_info(device)
    return unallocated + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
