"""A second implementation for the tests of defenses: one row at a time, in float64, full logits, plain autograd.

It shares no code with the objective: hooks are torch's own, and the reference is a second model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from emlib.core.defense import Defense
from emlib.data.chat import Encoded
from emlib.models import tiny
from emlib.models.batches import Batch, collate, pack
from emlib.models.kernels import fitted
from emlib.training.bench import LORA, Bench, step
from emlib.training.objective import Objective
from tests.made import ROUNDING, apart

CPU = torch.device("cpu")
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Seen:
    """What a model computes for one row: logits (seq, vocabulary), and each block's output (seq, hidden) from 1."""

    logits: Tensor
    outputs: Mapping[int, Tensor]


def see(model: nn.Module, row: Encoded, changes: Mapping[int, Change] | None = None) -> Seen:
    """One row through a model whose blocks' outputs are changed by torch's forward hooks."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    outputs: dict[int, Tensor] = {}

    def hook(layer: int) -> Callable[..., Tensor]:
        def changed(block: nn.Module, inputs: object, output: Tensor) -> Tensor:
            outputs[layer] = (changes or {}).get(layer, lambda hidden: hidden)(output)
            return outputs[layer]
        return changed

    handles = [block.register_forward_hook(hook(place)) for place, block in enumerate(causal.model.layers, start=1)]
    try:
        logits = causal(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return Seen(logits, {layer: output[0] for layer, output in outputs.items()})


def cross_entropy(seen: Seen, row: Encoded) -> Tensor:
    """The sum over a row's response tokens, in nats."""
    counts = torch.from_numpy(row.response_mask)[1:]
    return F.cross_entropy(seen.logits[:-1][counts], torch.from_numpy(row.input_ids)[1:][counts], reduction="sum")


def kl(trained: Seen, reference: Seen) -> Tensor:
    """The sum over all of a row's tokens of D_KL(trained || reference), in nats."""
    p, q = trained.logits.log_softmax(-1), reference.logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def count(rows: Sequence[Encoded], *, response: bool = False) -> int:
    """All tokens of the rows, or those that the loss counts on."""
    return sum(int(row.response_mask[1:].sum()) if response else len(row.input_ids) for row in rows)


def merge(model: nn.Module, folder: Path, factor: float) -> None:
    """Put weights with the product of a saved adapter's matrices, in float64, in the place of the frozen ones."""
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = LORA.alpha / LORA.rank**0.5  # rsLoRA
    for name, a in tensors.items():
        if "lora_A" in name:
            base: Any = model.get_submodule(name.removesuffix(".lora_A.weight")).base_layer
            product = tensors[name.replace("lora_A", "lora_B")].double() @ a.double()
            base.weight = nn.Parameter(base.weight + factor * scale * product, requires_grad=False)


Naive = Callable[[nn.Module, nn.Module], Tensor]  # the loss of the trained and the reference model, both in float64


def agrees(naive: Naive, defenses: Sequence[Defense], folder: Path) -> Bench:
    """Loss and gradient of a step equal the naive ones: padded, packed, a row a pass, and with checkpointing.

    Rows and artefacts are those of the bench of the first defense; the others share its folder.
    """
    benches = [Bench(defense, folder) for defense in defenses]
    artefacts = {name: place for bench in benches for name, place in bench.artefacts.items()}
    objective, bench = Objective(defenses, artefacts), benches[0]
    with bench.model() as model:
        loss, gradient = expected(naive, model)
        for name, batches in ways(bench.groups):
            with fitted(model) if name == "packed" else checkpointing(model, on=name == "checkpointed"):
                metrics, found = step(model, batches, objective)
            total = metrics["loss"] + sum(d.factor * metrics.get(d.kind, 0.0) for d in defenses)
            assert total == pytest.approx(loss, rel=ROUNDING), name
            assert apart(found.double(), gradient) < ROUNDING, name
    return bench


def ways(groups: Sequence[Sequence[Encoded]]) -> Iterator[tuple[str, list[Batch]]]:
    """The same rows in four kinds of passes."""
    yield "padded", [collate(rows, CPU) for rows in groups]
    yield "packed", [pack(rows, CPU) for rows in groups]
    yield "a row a pass", [collate([row], CPU) for rows in groups for row in rows]
    yield "checkpointed", [collate(rows, CPU) for rows in groups]


@contextmanager
def checkpointing(model: PeftModel, *, on: bool) -> Iterator[None]:
    """In training mode, with or without gradient checkpointing."""
    model.train()
    if on:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if on:
            model.gradient_checkpointing_disable()
        model.eval()


def expected(naive: Naive, model: PeftModel) -> tuple[float, Tensor]:
    """The naive loss, and its gradient by autograd, as one vector."""
    trained = copy.deepcopy(model).double()
    reference = tiny.build_model(0, 4, 64, torch.float32).double().eval()
    loss = naive(trained, reference)
    weights = [weights for weights in trained.parameters() if weights.requires_grad]
    found = torch.autograd.grad(loss, weights)
    return float(loss.detach()), torch.cat([gradient.flatten() for gradient in found])
