"""Changing a layer's output at every position.

steering, which adds a vector (section 3.1):       h~ = h + alpha * e
concept ablation, which projects directions out:   h~ = h - Q Q^T h
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
                             f"{hidden.shape[-1]}: it was extracted from another model. Extract it again with "
                             "this one.")
        changed = hidden + (strength * vector).to(hidden)
        with torch.no_grad():
            norm.norms.append((changed - hidden).float().norm(dim=-1).mean())  # a tensor: no waiting for the GPU
        return changed

    with tap(model, layer, add):
        yield norm
    if not norm.norms:
        raise EmlibError(f"layer {layer} never ran inside the steering context: nothing was steered. Run the model's "
                         "forward pass inside it.")


@dataclass
class AblatedNorm:
    """The norm of what the last pass removed at each position, (lines, seq), by layer."""

    norms: dict[int, Tensor] = field(default_factory=dict)

    @property
    def statistics(self) -> dict[str, Tensor]:
        """The mean over layers at each position, under its name in a training log; empty without layers."""
        return {"removed": torch.stack(list(self.norms.values())).mean(0)} if self.norms else {}


@contextmanager
def ablate(model: nn.Module, bases: Mapping[int, Tensor]) -> Iterator[AblatedNorm]:
    """Project the span of each layer's basis out of that layer's output at all positions, inside the context.

    Args:
        model: its blocks are changed inside the context.
        bases: for each layer, orthonormal columns, (hidden, directions).

    Raises:
        EmlibError: there is no such layer; a basis has another size; or no forward pass ran, so that nothing was
            removed.
    """
    norm = AblatedNorm()
    with ExitStack() as stack:
        for layer, basis in bases.items():
            stack.enter_context(tap(model, layer, _remover(layer, basis, norm)))
        yield norm
    if bases and not norm.norms:
        raise EmlibError(f"no layer of {', '.join(map(str, bases))} ran inside the context: nothing was removed. Run "
                         "the model's forward pass inside it.")


def _remover(layer: int, basis: Tensor, norm: AblatedNorm) -> Callable[[Tensor], Tensor]:
    def remove(hidden: Tensor) -> Tensor:
        if len(basis) != hidden.shape[-1]:
            raise EmlibError(f"the directions have {len(basis)} numbers and layer {layer} of this model has "
                             f"{hidden.shape[-1]}: they were taken from another model.")
        directions = basis.to(hidden.device)
        coordinates = hidden.float() @ directions  # in float32: bfloat16 would leave a part of the direction
        with torch.no_grad():
            norm.norms[layer] = coordinates.norm(dim=-1)  # the basis is orthonormal
        return hidden - (coordinates @ directions.T).to(hidden)

    return remove


def orthonormal(directions: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of some directions: (directions, hidden) -> (hidden, directions).

    Raises:
        EmlibError: a direction is zero, or lies in the span of the others.
    """
    basis, upper = torch.linalg.qr(directions.double().T)
    if bool((upper.diagonal().abs() <= 1e-9 * directions.double().norm(dim=-1)).any()):
        raise EmlibError("a direction is zero or a combination of the others, so that they span fewer directions than "
                         "asked for. Ask for fewer.")
    return basis.float()
