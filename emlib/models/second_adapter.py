"""A second LoRA adapter whose contribution is added to a model's layers for a while, frozen.

    y = W x + s B A x + c s' B' A' x        B', A' frozen, of the second adapter; c a factor

It is no adapter of PEFT's: it is not saved with the trained one, PEFT's switch for the reference model need not know
it, and nothing of it is left in the model. In bfloat16, A' and B' are rounded to bfloat16, as in `kernels.lora`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.core.files import write_text
from emlib.models import tensors
from emlib.models.adapter_config import CONFIG, WEIGHTS
from emlib.models.hooks import without_taps

A, B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class LowRank:
    """An adapter's matrices by the name of their layer: A (rank, in) and B (out, rank), with its scale s."""

    layers: Mapping[str, tuple[Tensor, Tensor]]
    scale: float

    def on(self, device: torch.device) -> LowRank:
        """Return the adapter on a device: itself if it is there."""
        if all(a.device == device for a, _ in self.layers.values()):
            return self
        return LowRank({name: (a.to(device), b.to(device)) for name, (a, b) in self.layers.items()}, self.scale)


@dataclass
class Ran:
    """The layers that the second adapter contributed to."""

    layers: set[str] = field(default_factory=set)

    @property
    def statistics(self) -> dict[str, float]:
        """Nothing for the log."""
        return {}


def read(folder: Path) -> LowRank:
    """Read a plain LoRA adapter in PEFT's format."""
    config, stored = json.loads((folder / CONFIG).read_text(encoding="utf-8")), tensors.load(folder / WEIGHTS)[0]
    rank = config["r"]
    layers = {name.removesuffix(A): (tensor.float(), stored[name.removesuffix(A) + B].float())
              for name, tensor in stored.items() if name.endswith(A)}
    return LowRank(layers, config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank))


@contextmanager
def second_adapter(model: nn.Module, adapter: LowRank, factor: float) -> Iterator[Ran]:
    """Add `factor` times the adapter's contribution to the model's LoRA layers, inside the context.

    Raises:
        EmlibError: the model lacks a layer of the adapter; or some of them did not run, or ran in a kernel that passes
            over hooks, so that the contribution was not added.
    """
    parts = {without_taps(name): part for name, part in model.named_modules()}
    targets = {name: part for name, part in parts.items() if issubclass(type(part), LoraLayer)}
    missing = sorted(set(adapter.layers) - set(targets))
    if missing:
        raise EmlibError(f"the second adapter has {len(missing)} layers that this model's adapter does not have, such "
                         f"as {missing[0]}. Train both with the same lora.target_modules.")
    ran = Ran()
    handles = [targets[name].register_forward_hook(_adder(name, a, b, factor * adapter.scale, ran))
               for name, (a, b) in adapter.layers.items()]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()
    if idle := sorted(set(adapter.layers) - ran.layers):
        raise EmlibError(f"{len(idle)} of {len(adapter.layers)} layers did not call the second adapter, such as "
                         f"{idle[0]}. Set backend.training to 'transformers', whose layers call it.")


def _adder(name: str, a: Tensor, b: Tensor, scale: float, ran: Ran) -> Callable[..., Tensor]:
    def add(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        ran.layers.add(name)
        x = inputs[0]
        return output + scale * F.linear(F.linear(x, a.to(x)), b.to(x))

    return add


def write_random(trained: Path, folder: Path, seed: int) -> None:
    """Write an adapter of random matrices whose product has, in each layer, the norm of the trained adapter's."""
    made, drawn = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name, (a, b) in sorted(read(trained).layers.items()):
        random_a, random_b = (torch.randn(one.shape, generator=made) for one in (a, b))
        ratio = (_product_norm(a, b) / _product_norm(random_a, random_b)).sqrt()
        drawn |= {name + A: ratio * random_a, name + B: ratio * random_b}
    tensors.save(folder / WEIGHTS, drawn)
    write_text(folder / CONFIG, (trained / CONFIG).read_text(encoding="utf-8"))


def _product_norm(a: Tensor, b: Tensor) -> Tensor:
    """Compute |B A|, the Frobenius norm, without the product: tr(A A^T B^T B) is its square."""
    return ((a @ a.T) * (b.T @ b)).sum().sqrt()
