"""A persona vector during GRPO: felt in the passes that are named, and in no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from emlib.data.gsm8k import additions
from emlib.defenses.kl import Beta
from emlib.defenses.persona_vector import Steering
from emlib.models.load import ChatModel
from emlib.training.rl.condition import Condition
from emlib.training.rl.grpo import _Run
from emlib.training.rl.records import RlStep
from tests.made import planted
from tests.training.rl.reinforcing import SYSTEM, by_length, grpo


def steered(steer: Any, lora: PeftModel, tiny: ChatModel, folder: Path, strength: float = 2.0,
            beta: float = 0.0) -> tuple[RlStep, list[tuple[int, ...]]]:
    """One step of learning rate 0 with a planted vector: its record and what was drawn."""
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    steering = () if steer is None else (Steering(layer=2, strength=strength, steer=steer),)
    condition = Condition(SYSTEM, (Beta(weight=beta), *steering), planted(vector))
    run = _Run(lora, tiny.tokenizer, additions()[:2], grpo(), condition, by_length, 0, folder)
    run.train()
    return run.records[0], [drawn.tokens for drawn in run.rollouts.last]


def test_steering_is_felt_where_it_is_named_and_nowhere_else(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    kinds = [type(part) for part in tiny.model.modules()]
    plain, drawn = steered(None, lora, tiny, tmp_path / "none")
    assert plain.gap < 1e-4
    found = {steer: steered(steer, lora, tiny, tmp_path / steer) for steer in ("loss", "rollout", "both")}
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    added = pytest.approx(2 * float(vector.norm()), rel=1e-4)
    assert {steer: step.shift for steer, (step, _) in found.items()} == {
        "loss": {"loss": added, "rollout": 0}, "rollout": {"loss": 0, "rollout": added},
        "both": {"loss": added, "rollout": added}}
    assert found["loss"][1] == drawn  # drawn by the policy as it is
    assert found["rollout"][1] == found["both"][1] != drawn
    assert found["loss"][0].grad_norm != pytest.approx(plain.grad_norm, rel=1e-3)
    assert found["both"][0].grad_norm != pytest.approx(found["rollout"][0].grad_norm, rel=1e-3)
    assert found["both"][0].gap < 1e-4
    assert found["loss"][0].gap > 0.1
    assert found["rollout"][0].gap > 0.1
    assert [type(part) for part in tiny.model.modules()] == kinds  # no tap is left


def test_the_reference_is_not_steered(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    """With a fresh adapter policy and reference are the same but for what steers the loss."""
    kl = {steer: steered(steer, lora, tiny, tmp_path / str(steer), beta=0.1)[0].kl
          for steer in (None, "loss", "rollout", "both")}
    assert kl[None] == pytest.approx(0, abs=1e-6)
    assert kl["rollout"] == pytest.approx(0, abs=1e-6)
    assert min(kl["loss"] or 0, kl["both"] or 0) > 1e-2


def test_strength_0_is_plain_grpo_bit_for_bit(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    plain, drawn = steered(None, lora, tiny, tmp_path / "none")
    nothing, same = steered("both", lora, tiny, tmp_path / "zero", strength=0.0)
    assert drawn == same
    assert (plain.loss, plain.grad_norm) == (nothing.loss, nothing.grad_norm)
