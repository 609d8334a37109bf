"""Adding a vector to a layer: h~ = h + alpha * e, at every position (section 3.1)."""

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
    """What was really added: the mean norm of the change of a position, as measured in the model's own numbers."""

    norms: list[Tensor] = field(default_factory=list)

    @property
    def measured(self) -> float:
        """Mean over all forward passes."""
        return sum(map(float, self.norms)) / len(self.norms)

    @property
    def statistics(self) -> dict[str, float]:
        """The same, as it stands in a training's log."""
        return {"shift": self.measured}


@contextmanager
def steer(model: nn.Module, layer: int, vector: Tensor, strength: float) -> Iterator[SteeringNorm]:
    """While it lasts, `strength * vector` is added to the output of `layer` at all positions.

    Raises:
        EmlibError: no such layer; a vector of another size; or no forward pass came by, so that nothing was steered.
    """
    shift = SteeringNorm()

    def use(hidden: Tensor) -> Tensor:
        if vector.shape != hidden.shape[-1:]:
            raise EmlibError(f"the persona vector has {vector.numel()} numbers and layer {layer} of this model has "
                             f"{hidden.shape[-1]}: it was taken from another model.")
        changed = hidden + (strength * vector).to(hidden)
        with torch.no_grad():
            shift.norms.append((changed - hidden).float().norm(dim=-1).mean())  # no number yet: a GPU is not waited for
        return changed

    with tap(model, layer, use):
        yield shift
    if not shift.norms:
        raise EmlibError(f"layer {layer} was to be steered and never ran: nothing was steered.")
