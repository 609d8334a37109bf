"""The principal components of what fine-tuning changes in a layer's output, over response tokens.

    d_t = h_fine-tuned,t - h_base,t;      components: eigenvectors of the covariance of d_t, largest variance first

This is how CAFT finds directions (arXiv 2507.16795; its public code subtracts the mean of the differences as well).
Here it differs in that the covariance is summed over all tokens, in float64, and decomposed exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.core.progress import bar
from emlib.data.chat import Encoded
from emlib.models import tensors
from emlib.models.adapters import adapter_off
from emlib.models.batches import forward_batches
from emlib.models.hooks import capture_activations
from emlib.models.kernels import fitted

FILE = "components.safetensors"
KEPT = 20  # components per layer, as in CAFT's public code


@dataclass(frozen=True)
class Components:
    """For each layer the components, (components, hidden), and the share of the variance that each explains."""

    directions: dict[int, Tensor]
    shares: dict[int, Tensor]

    def first(self, layer: int, count: int) -> Tensor:
        """Return the leading `count` components of a layer: (count, hidden).

        Raises:
            EmlibError: fewer are stored, or the layer was not decomposed.
        """
        found = self.directions.get(layer)
        if found is None or len(found) < count:
            have = "none" if found is None else str(len(found))
            raise EmlibError(f"layer {layer} has {have} of {count} wanted principal components. Ask for fewer, or take "
                             "them from more rows.")
        return found[:count]


@torch.no_grad()
def decompose(model: nn.Module, rows: Sequence[Encoded], layers: Sequence[int], batch_size: int) -> Components:
    """Decompose the differences between `model`, with its adapter, and the same model without it.

    Components that explain no variance are left out.

    Raises:
        EmlibError: the adapter changes nothing.
    """
    device = next(model.parameters()).device
    sums = {layer: torch.zeros((), dtype=torch.float64, device=device) for layer in layers}
    squares, count = dict(sums), 0
    with fitted(model):
        batches = forward_batches(rows, batch_size, model, responses_only=True)
        for batch in bar(batches, "components", "pass", total=len(batches)):
            with capture_activations(model, layers) as tuned:
                batch.hidden(model)
            with adapter_off(model), capture_activations(model, layers) as base:
                batch.hidden(model)
            for layer in layers:
                change = (tuned[layer] - base[layer])[batch.response_mask].double()  # (tokens, hidden)
                sums[layer], squares[layer] = sums[layer] + change.sum(0), squares[layer] + change.T @ change
            count += int(batch.response_mask.sum())
    means = {layer: total / count for layer, total in sums.items()}
    found = {layer: _leading((squares[layer] / count - torch.outer(means[layer], means[layer])).cpu())
             for layer in layers}
    return Components({layer: directions for layer, (directions, _) in found.items()},
                      {layer: shares for layer, (_, shares) in found.items()})


def _leading(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors as rows, each with its largest number positive, and their shares."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1).T
    if not float(values[0]) > 0:
        raise EmlibError("the fine-tuned model's activations equal the base model's: there is no direction of change.")
    vectors = vectors[:KEPT][values[:KEPT] > 1e-12 * values[0]]
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return (vectors * largest.sign()).float().contiguous(), (values / values.sum())[:len(vectors)].float()


def save(found: Components, folder: Path) -> None:
    """Write the components and their shares as safetensors."""
    tensors.save(folder / FILE, {f"{name} {layer}": tensor for name, by_layer in vars(found).items()
                                 for layer, tensor in by_layer.items()})


def load(folder: Path) -> Components:
    """Load the components that `save` wrote; cached while the file is unchanged."""
    return _read(folder / FILE, (folder / FILE).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _: int) -> Components:
    parts: dict[str, dict[int, Tensor]] = {"directions": {}, "shares": {}}
    for name, tensor in tensors.load(path)[0].items():
        kind, layer = name.split(" ")
        parts[kind][int(layer)] = tensor
    return Components(**parts)
