"""What fine-tuning and reinforcement learning do alike: the defenses' contexts, penalties and reference passes.

The reference model is the trained one with the adapter off, and its pass comes first, without the defenses' contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from emlib.core.defense import Defense
from emlib.core.errors import EmlibError
from emlib.core.hook_errors import named_errors
from emlib.core.hooks import Active
from emlib.models.adapters import adapter_off
from emlib.models.batches import Batch
from emlib.models.hooks import capture_activations, first_blocks, layers
from emlib.models.passes import Pass


def entered(stack: ExitStack, defense: Defense, model: nn.Module, artefacts: Mapping[str, Path]) -> Active:
    """Enter a defense's context (`Defense.active`) until the stack is closed."""
    with named_errors(defense, "active"):
        shown: Any = stack.enter_context(defense.active(model, artefacts))
        if shown is None:
            raise TypeError("its context yields None, and not an object with `statistics`, a mapping that may be empty")
        return cast(Active, shown)


def layers_read(model: nn.Module, defenses: Sequence[Defense]) -> tuple[int, ...]:
    """Return the decoder blocks whose outputs some penalty needs.

    Raises:
        EmlibError: a penalty on layers uses none of this model's. A profile is refused before, unless the number of its
            model's layers is not known.
    """
    count = layers(model)
    for defense in defenses:
        if defense.reads_nothing(count):
            raise EmlibError(f"The defense '{defense.kind}' uses none of the model's {count} layers, so that training "
                             "would be plain fine-tuning. Name one of them, or lower the distance between layers.")
    return tuple(sorted({layer for defense in defenses for layer in defense.reads_layers(count)}))


def reference_pass(model: nn.Module, batch: Batch, defenses: Sequence[Defense], *, head: bool = False,
                   stored: bool = False) -> Pass | None:
    """Run the reference model, as deep as needed, if some penalty needs it.

    With `head` the head compares as well; it takes the states of this pass, if there is one, rather than `stored` ones.
    """
    users = [defense for defense in defenses if _compares(defense)]
    if not users and (stored or not head):
        return None
    wanted = layers_read(model, defenses)
    whole = head or not wanted or any(defense.reads_hidden for defense in users)
    with (torch.no_grad(), adapter_off(model), nullcontext() if whole else first_blocks(model, max(wanted)),
          capture_activations(model, wanted) as features):
        hidden = batch.hidden(model)
    return Pass(model, batch, hidden if whole else None, features)


def trained_pass(model: nn.Module, batch: Batch, hidden: Tensor | None, features: Mapping[int, Tensor],
                 acting: Sequence[Defense], artefacts: Mapping[str, Path]) -> Pass:
    """Return the trained model's pass without the vectors that defenses add, in the residual stream from a layer on."""
    added = [found for defense in acting for found in defense.added_vectors(artefacts).items()]
    for at, vector in added if features else ():
        features = {layer: output - vector.to(output) if layer >= at else output for layer, output in features.items()}
    return Pass(model, batch, hidden, features)


def penalties(defenses: Sequence[Defense], trained: Pass, reference: Pass | None,
              count: Callable[[Defense], int]) -> dict[str, Tensor]:
    """Return each defense's penalty, divided by its count and not weighted, by its kind.

    Raises:
        EmlibError: a penalty is no single number, has no gradient, or reads a reference pass that it does not ask for.
    """
    found = {}
    for defense in defenses:
        if defense.has("penalty"):
            read = defense.reads_layers(layers(trained.model))
            other: Any = _NoReference(defense)
            if reference is not None and _compares(defense):
                other = reference.with_features(read)
            found[defense.kind] = _number(defense, defense.penalty(trained.with_features(read), other)) / count(defense)
    return found


def _compares(defense: Defense) -> bool:
    """Return whether a penalty is given a pass of the reference model."""
    return defense.wants_reference and defense.runs_reference


class _NoReference:
    """Stands for the reference model's pass where a defense does not ask for one: reading it is an error."""

    def __init__(self, defense: Defense) -> None:
        self._defense = defense

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python looks for in any object
            raise AttributeError(name)
        todo = "let its `runs_reference` be True" if self._defense.wants_reference else "set `wants_reference = True`"
        raise EmlibError(f"The penalty of '{self._defense.kind}' reads `reference.{name}`, and the reference model is "
                         f"not run for it: {todo} in the class.")


def _number(defense: Defense, value: Tensor) -> Tensor:
    """Return the value of a penalty; refuse what could not be added to the loss, or would change nothing."""
    start = f"The penalty of '{defense.kind}'"
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise EmlibError(f"{start} returned {what}; return one number, such as a sum, as a tensor.")
    # A loss of 0 is no fault: the pass may hold none of the rows that the penalty acts on.
    if not value.requires_grad and defense.has_gradient and torch.is_grad_enabled() and float(value):
        raise EmlibError(f"{start} has no gradient, and training would be plain fine-tuning: it is {float(value):g} "
                         "whatever the weights are. Compute it from `trained`, without detach() or no_grad().")
    return value.reshape(())
