"""The loss terms of defenses (`Defense.penalty`), and the reference model's pass that they compare with.

Fine-tuning and reinforcement learning compute them alike: the reference model is the trained one with the adapter off,
and its pass comes first, without the defenses' contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from emlib.core.defense import Defense
from emlib.core.errors import EmlibError
from emlib.models.adapters import adapter_off
from emlib.models.batches import Batch
from emlib.models.hooks import capture_activations, first_blocks, layers
from emlib.models.passes import Pass


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
    users = [defense for defense in defenses if defense.wants_reference and defense.runs_reference]
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
    """Return each defense's penalty, divided by its count and not weighted, by its kind."""
    found = {}
    for defense in defenses:
        if defense.has("penalty"):
            sides = [each.with_features(defense.reads_layers(layers(each.model)))
                     for each in (trained, reference or trained)]
            found[defense.kind] = defense.penalty(*sides) / count(defense)
    return found
