"""Steering: adding a vector to a layer's output, h~ = h + alpha * e, at every position (section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.models.hooks import tap


@dataclass
class SteeringNorm:
    """The norm of what is added per position, as measured in the model's own precision: a mean per forward pass."""

    norms: list[Tensor] = field(default_factory=list)

    @property
    def measured(self) -> float:
        """The mean over all forward passes."""
        return sum(map(float, self.norms)) / len(self.norms)

    @property
    def statistics(self) -> dict[str, float]:
        """The same, under its name in a training log."""
        return {"shift": self.measured}


@contextmanager
def steer(model: nn.Module, layer: int, vector: Tensor, strength: float) -> Iterator[SteeringNorm]:
    """Add `strength * vector` to the output of `layer` at all positions, inside the context.

    Raises:
        EmlibError: there is no such layer; the vector has another size; or no forward pass ran, so that nothing was
            steered.
    """
    norm = SteeringNorm()

    def add(hidden: Tensor) -> Tensor:
        if vector.shape != hidden.shape[-1:]:
            raise EmlibError(f"the persona vector has {vector.numel()} numbers and layer {layer} of this model has "
                             f"{hidden.shape[-1]}: it was taken from another model.")
        changed = hidden + (strength * vector).to(hidden)
        with torch.no_grad():
            norm.norms.append((changed - hidden).float().norm(dim=-1).mean())  # a tensor: no waiting for the GPU
        return changed

    with tap(model, layer, add):
        yield norm
    if not norm.norms:
        raise EmlibError(f"layer {layer} never ran inside the steering context: nothing was steered. Run the model's "
                         "forward pass inside it.")
