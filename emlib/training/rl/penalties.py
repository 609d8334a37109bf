"""The penalties of defenses on the positions of the completions, added to GRPO's loss."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from emlib.core.defense import Defense
from emlib.models.batches import Batch
from emlib.models.hooks import capture_activations
from emlib.models.passes import Pass
from emlib.training.penalties import layers_read, penalties, reference_pass, trained_pass
from emlib.training.rl.condition import Condition
from emlib.training.rl.rollouts import Rollouts


class Penalties:
    """The penalties of a step's passes: each is a mean over the completions of the whole optimizer step."""

    def __init__(self, condition: Condition, rollouts: Rollouts) -> None:
        self.condition, self.rollouts = condition, rollouts
        self.penalising = [defense for defense in condition.acting if defense.has("penalty")]
        self._sums = dict[str, float]()

    def reference(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Pass | None:
        """Run the reference model over a batch of TRL's, if a penalty compares with it."""
        return reference_pass(model, _batch(inputs), self.penalising) if self.penalising else None

    def read(self, model: nn.Module) -> AbstractContextManager[dict[int, Tensor]]:
        """Yield a mapping that TRL's forward pass fills with the outputs that penalties read."""
        return capture_activations(model, layers_read(model, self.penalising))

    def of(self, model: nn.Module, inputs: Mapping[str, Tensor], outputs: Mapping[int, Tensor],
           reference: Pass | None) -> Tensor | float:
        """Return the batch's share of all penalties, weighted: a scalar; 0 without penalties."""
        if not self.penalising:
            return 0.0
        trained = trained_pass(model, _batch(inputs), None, outputs, self.condition.acting, self.condition.artefacts)
        found = penalties(self.penalising, trained, reference, self._count)
        for kind, value in found.items():
            self._sums[kind] = self._sums.get(kind, 0.0) + float(value.detach())
        return sum((defense.factor * found[defense.kind] for defense in self.penalising), start=torch.zeros(()).to(
            next(iter(outputs.values())).device))

    def taken(self) -> dict[str, float]:
        """Return the last step's penalties, unweighted, by kind; begins the sums of the next step."""
        found, self._sums = self._sums, {}
        return found

    def _count(self, defense: Defense) -> int:
        drawn = self.rollouts.last
        tokens = sum(len(one.tokens) for one in drawn)
        return max(1, {"token": tokens, "response_token": tokens, "row": len(drawn), "step": 1}[defense.per])


def _batch(inputs: Mapping[str, Tensor]) -> Batch:
    """Return the rows of TRL's batch: prompts are padded on the left, completions on the right of them."""
    prompts, completions = inputs["prompt_ids"], inputs["completion_ids"]
    lengths, start = inputs["completion_mask"].sum(1).tolist(), prompts.shape[1]
    ids = torch.cat([prompts, completions], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    spans = tuple((line, slice(start, start + length)) for line, length in enumerate(lengths))
    response = torch.zeros_like(ids, dtype=torch.bool)
    response[:, start:] = inputs["completion_mask"].bool()
    return Batch(ids, response, attention, tuple(map(str, range(len(lengths)))), spans)
