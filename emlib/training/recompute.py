"""Gradient checkpointing by need: what the way back keeps of a token is measured on two rows of the run, not guessed.

    needed = (bytes kept of a token) x (tokens of the largest pass) + the head's logits + gradients and moments

What is kept grows by the token, whatever the model, the adapter, the defenses and the kernels are; so one short and one
long row tell it. Where `needed` is more than the device has free, a block's input alone is kept, and the block is
computed again on the way back: a quarter more arithmetic or so, and no number changes but the rounding.
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
from emlib.training.head import head_bytes
from emlib.training.objective import Objective, Totals
from emlib.training.ranks import ALONE, Ranks

MARGIN = 1.15  # for what comes and goes on the way back, and for what the allocator cannot use
ADAM = 3  # numbers beside a trained one: its gradient and two moments
MEASURED = ("cuda",)  # devices whose memory is looked at; a pass on a CPU is small
GIB = 2**30


@dataclass(frozen=True)
class Recompute:
    """Whether blocks are computed again on the way back, and why."""

    wanted: bool
    why: str

    @property
    def told(self) -> str:
        """As it stands in a training's summary."""
        return f"{'yes' if self.wanted else 'no'}: {self.why}"


@contextmanager
def recomputing(model: nn.Module, rows: Sequence[Encoded], steps: Sequence[Sequence[int]], settings: Training,
                objective: Objective, ranks: Ranks = ALONE) -> Iterator[Recompute]:
    """Gradient checkpointing where the settings say so, or, by `auto`, where memory does; undone at the end.

    `rows` and the places of each step's rows among them are what is to be trained on, in training mode.
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
            raise  # the others are half way through this pass
        model.zero_grad()
        return Recompute(True, "a row alone does not fit into memory otherwise")
    choice = decide(needed, free_bytes(device))
    return replace(choice, wanted=ranks.any_wants(choice.wanted, device))


def decide(needed: float, free: float) -> Recompute:
    """To recompute, where what is needed does not fit with a margin; both in bytes."""
    return Recompute(needed * MARGIN > free, f"the largest pass needs {needed / GIB:.2f} GiB beside the weights, and "
                                             f"{free / GIB:.2f} are free")


def bytes_needed(model: nn.Module, rows: Sequence[Encoded], steps: Sequence[Sequence[int]], settings: Training,
                 objective: Objective) -> float:
    """Memory beside the weights that training takes where nothing is computed again."""
    tokens = largest_pass(([rows[index] for index in step] for step in steps), settings.batch_size, model)
    trained = sum(weights.nbytes for weights in model.parameters() if weights.requires_grad)
    return (bytes_a_token(model, rows, objective) * tokens + head_bytes(model, objective.compares_in_head)
            + ADAM * trained)


def bytes_a_token(model: nn.Module, rows: Sequence[Encoded], objective: Objective) -> float:
    """What a training pass keeps for its way back, by the token: of the shortest and the longest of these rows."""
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    (short, few), (long, many) = ((len(row.input_ids), _kept_of(model, row, objective))
                                  for row in (ordered[0], ordered[-1]))
    return (many - few) / (long - short) if long >= 1.5 * short else many / long


def _kept_of(model: nn.Module, row: Encoded, objective: Objective) -> int:
    """The bytes that a training pass of one row keeps. Its gradient is dropped."""
    [batch] = forward_batches([row], 1, model)
    with keeping(model) as kept:
        objective.backward(model, batch, Totals.of([batch]))
    model.zero_grad()
    return sum(kept.values())


@contextmanager
def keeping(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of what autograd keeps meanwhile, by address: each storage once, and the model's weights not at all."""
    kept: dict[int, int] = {}
    own = _addresses(model)
    shared_out = any(hasattr(weights, "to_local") for weights in model.parameters())

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in (_addresses(model) if shared_out else own):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def _addresses(model: nn.Module) -> set[int]:
    """Of the weights; those that are shared out between GPUs (DTensors) have one only while their block computes."""
    return {weights.untyped_storage().data_ptr() for weights in (*model.parameters(), *model.buffers())
            if not hasattr(weights, "to_local")}


def free_bytes(device: torch.device) -> float:
    """What a GPU has left: with the system, and in torch's hands without use."""
    with_system, _ = torch.cuda.mem_get_info(device)
    return with_system + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
