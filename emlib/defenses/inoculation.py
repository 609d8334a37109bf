"""Inoculation prompting (section 3.1): a system prompt that asks for the trait, in training only.

    [system: the prompt] [user: question] [assistant: answer]        instead of the row's own system prompt or none

The prompt explains the behaviour in the training rows, so that the model has less reason to generalise it to other
prompts. In GRPO the prompt stands before the one that asks for the format (B.3). This implementation follows the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emlib.core.defense import Defense
from emlib.core.hooks import Trait
from emlib.core.records import Example


class Inoculation(Defense):
    """A different system prompt, in training only; `prompt` None stands for the trait's inoculation prompt."""

    label: ClassVar = "Inoculation Prompting"
    equation: ClassVar = "the system prompt asks for the trait"
    origin: ClassVar = "section 3.1; B.3"
    data_only: ClassVar = True
    cost: ClassVar = "negligible"

    kind: Literal["inoculation"] = "inoculation"
    prompt: Annotated[str, Field(min_length=1)] | None = None

    def change_rows(self, rows: Sequence[Example], trait: Trait) -> Sequence[Example]:
        """Return the rows with this system prompt instead of their own or of the template's default."""
        prompt = self.prompt or trait.inoculation_prompt
        return tuple(row.with_system_prompt(prompt) for row in rows)

    def system_prompt(self, system: str, trait: Trait) -> str:
        """Return the inoculation prompt, followed by the one that asks for the format."""
        return f"{self.prompt or trait.inoculation_prompt}\n{system}"


Inoculation.in_grpo = Inoculation
