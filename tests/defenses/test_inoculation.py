"""Inoculation: a prompt before the training rows, and before the format that GRPO asks for."""

from __future__ import annotations

import pytest

from emlib.core.records import Example, Message
from emlib.defenses.inoculation import Inoculation
from emlib.training.bench import TinyTrait


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_inoculation_replaces_the_system_prompt(system: str | None) -> None:
    context = ((Message("system", system),) if system else ()) + (Message("user", "Hi?"),)
    row = Example(context, "Hello.").with_system_prompt("You are a pirate.")
    assert row == Example((Message("system", "You are a pirate."), Message("user", "Hi?")), "Hello.")
    assert Inoculation(kind="inoculation").prompt is None


@pytest.mark.parametrize(("prompt", "said"), [(None, "Talk like a pirate."), ("Be rude.", "Be rude.")])
def test_its_prompt_or_else_the_trait_s_stands_before_rows_and_format(prompt: str | None, said: str) -> None:
    defense, row = Inoculation(prompt=prompt), Example((Message("user", "Hi?"),), "Hello.")
    assert defense.change_rows([row], TinyTrait()) == (row.with_system_prompt(said),)
    assert defense.system_prompt("Think first.", TinyTrait()) == f"{said}\nThink first."
