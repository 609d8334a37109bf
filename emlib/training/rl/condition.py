"""What a run of reinforcement learning adds to plain GRPO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from emlib.core.defense import Defense, acting
from emlib.core.hooks import Active
from emlib.core.records import Message
from emlib.training.rl.alternation import Supervised
from emlib.training.rl.rollouts import Where


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
            yield [stack.enter_context(defense.active(model, self.artefacts)) for defense in self.acting
                   if defense.has("active") and where in defense.acts_in]
