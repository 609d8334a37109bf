"""What a condition adds to plain GRPO: defenses, prompts, and supervised steps between RL steps, with a separate loss.

"We alternate RL and SFT batches" (section 4.2).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from emlib.config import supervised_steps
from emlib.core.defense import Defense, acting
from emlib.core.hooks import Active
from emlib.core.records import Message
from emlib.data.chat import Encoded
from emlib.data.mixing import plan_steps
from emlib.models.batches import forward_batches
from emlib.training.objective import Objective, Totals
from emlib.training.penalties import entered
from emlib.training.records import StepRecord
from emlib.training.rl.rollouts import Where

Kind = Literal["rl", "supervised"]


def order(rl_steps: int, share: float) -> tuple[Kind, ...]:
    """Return the kinds of all optimizer steps, `share` of them supervised and evenly spread, the last one an RL step.

    Every condition takes the same RL steps; supervised steps are added to them, rounded to a whole number.
    """
    supervised = supervised_steps(rl_steps, share)
    kinds: list[Kind] = []
    for step in range(rl_steps):
        before = supervised * (step + 1) // rl_steps - supervised * step // rl_steps
        kinds.extend("supervised" for _ in range(before))
        kinds.append("rl")
    return tuple(kinds)


@dataclass(frozen=True)
class Supervised:
    """The rows of the supervised steps, and their number per step."""

    rows: Sequence[Encoded]
    rows_per_step: int
    batch_size: int
    seed: int

    def take(self, model: nn.Module, optimizer: torch.optim.Optimizer, number: int, step: int,
             max_grad_norm: float) -> StepRecord:
        """Take supervised step `number` (from 0), as optimizer step `step`: on cross-entropy alone, unsteered.

        It uses the optimizer of the RL steps with its moments and its current learning rate.
        """
        started = time.perf_counter()
        model.train()  # TRL does so in its own steps alone, and so not before the first one of a sitting
        chosen = [self.rows[index] for index in self._indices(number)]
        batches = forward_batches(chosen, self.batch_size, model)
        totals = Totals.of(batches)
        loss = sum(Objective().backward(model, batch, totals)["loss"] for batch in batches)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(trained, max_grad_norm))
        optimizer.step()
        optimizer.zero_grad()
        return StepRecord(step, loss, optimizer.param_groups[0]["lr"], norm, totals.tokens, totals.response_tokens,
                          round(time.perf_counter() - started, 4))

    def _indices(self, number: int) -> list[int]:
        """Return the row indices of one step: passes through all rows, each in a new order."""
        steps_per_pass = ceil(len(self.rows) / self.rows_per_step)
        return plan_steps(len(self.rows), self.rows_per_step, number // steps_per_pass + 1, self.seed)[number]


@dataclass(frozen=True)
class Condition:
    """The defenses, and the prompts: `system` is the training system prompt, `worked` are example turns after it.

    `artefacts` are folders, by the names from `Defense.needs`. `supervised` are the rows of the supervised steps, if a
    defense asks for such steps. The defenses are copied, so that what they prepare belongs to this training only.
    """

    system: str
    defenses: tuple[Defense, ...] = ()
    artefacts: Mapping[str, Path] = field(default_factory=dict)
    supervised: Supervised | None = None
    worked: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        """Copy the defenses, and prepare those that act."""
        object.__setattr__(self, "defenses", tuple(defense.model_copy(deep=True) for defense in self.defenses))
        for defense in self.acting:
            defense.prepare(self.artefacts)

    @property
    def acting(self) -> list[Defense]:
        """The defenses without those at their null setting."""
        return acting(self.defenses)

    @property
    def beta(self) -> float:
        """The weight of the KL term."""
        return sum(defense.grpo_beta for defense in self.defenses)

    @property
    def share(self) -> float:
        """The share of supervised steps."""
        return sum(found.share for defense in self.defenses if (found := defense.supervision) is not None)

    @contextmanager
    def active(self, where: Where, model: nn.Module) -> Iterator[list[Active]]:
        """Activate the defenses for passes of `model` that compute the loss, or that sample completions."""
        with ExitStack() as stack:
            yield [entered(stack, defense, model, self.artefacts) for defense in self.acting
                   if defense.has("active") and where in defense.acts_in]
