"""Concept ablation: projecting directions out of layers' outputs, h~ = h - Q Q^T h, at every position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.models.hooks import tap


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
