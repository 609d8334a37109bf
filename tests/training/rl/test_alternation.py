"""Supervised steps between RL steps: their share, their places, and what they change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from emlib.models.adapters import new_lora
from emlib.models.load import ChatModel
from emlib.training.records import read_log
from emlib.training.rl.condition import order
from emlib.training.rl.records import read_steps
from tests.training.rl.reinforcing import LORA, alternating, by_length, disturb, equal, train, weights


@given(st.integers(1, 400), st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.25, 0.5, 0.9]))
def test_the_share_of_supervised_steps_is_the_one_that_was_named(steps: int, share: float) -> None:
    kinds = order(steps, share)
    assert kinds.count("rl") == steps
    assert kinds[-1] == "rl"
    supervised = kinds.count("supervised")
    assert abs(supervised - steps * share / (1 - share)) <= 0.5  # of a step
    for place in range(len(kinds)):  # evenly: at any time the share is what it should be, but for one step
        done = kinds[:place + 1]
        assert abs(done.count("supervised") - done.count("rl") * supervised / steps) <= 1 + supervised / steps


@pytest.mark.parametrize(("steps", "share", "supervised"), [
    (99, 0.01, 1), (95, 0.05, 5), (80, 0.2, 20), (75, 0.25, 25), (50, 0.5, 50), (250, 0.01, 3), (4, 0, 0)])
def test_the_paper_s_shares(steps: int, share: float, supervised: int) -> None:
    assert order(steps, share).count("supervised") == supervised


def test_one_half_alternates() -> None:
    assert order(3, 0.5) == ("supervised", "rl") * 3


def test_both_kinds_of_steps_change_the_adapter_and_stand_in_the_log(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    before = weights(lora)
    summary = train(lora, tiny, tmp_path, problems=6, score=equal, condition=alternating(tiny, 0.5))
    rl, supervised = read_steps(tmp_path), read_log(tmp_path)
    assert (summary.steps, summary.supervised_steps) == (3, 3)
    assert [step.step for step in supervised] == [1, 3, 5]
    assert [step.step for step in rl] == [2, 4, 6]
    assert [step.learning_rate for step in (supervised[0], rl[0], supervised[1])] == [0, 1e-2, 8e-3]  # one schedule
    assert all(step.grad_norm > 0 and step.loss > 0 for step in supervised)
    assert [step.grad_norm for step in rl] == [0, 0, 0]  # so that all change is of the supervised steps ...
    assert any(not torch.equal(before[name], now) for name, now in weights(lora).items())
    other = tmp_path / "other"
    train(lora, tiny, other, problems=4, score=by_length, condition=alternating(tiny, 0.5))
    assert all(step.grad_norm > 0 for step in read_steps(other))  # ... and here of both
    assert supervised[2].loss < supervised[0].loss


def test_a_supervised_step_has_dropout_in_whatever_mode_it_finds_the_model(tiny: ChatModel) -> None:
    """A resumed sitting begins with a model as it is loaded: in evaluation mode."""
    losses: list[float] = []
    supervised = alternating(tiny, 0.5).supervised
    assert supervised is not None
    for mode in (True, False):
        with new_lora(tiny.model, LORA.model_copy(update={"dropout": 0.5}), 0) as model:
            disturb(model)
            torch.manual_seed(7)
            trained = [weights for weights in model.parameters() if weights.requires_grad]
            record = supervised.take(model.train(mode), torch.optim.SGD(trained, 0.0), 0, 1, 1.0)
            losses.append(record.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
