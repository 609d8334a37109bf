"""A defense may stop GRPO after a step; a run that was killed then or before ends in the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from peft import PeftModel
from pydantic import PrivateAttr
from torch import Tensor

from emlib.core.defense import GrpoDefense
from emlib.defenses.early_stop import DriftStop
from emlib.evaluation.records import Reading
from emlib.evaluation.rewards import Rewards, Scored
from emlib.models.adapters import new_lora
from emlib.models.load import ChatModel
from emlib.training import checkpoint
from emlib.training.monitor import ModelReader, write_inputs
from emlib.training.rl import grpo
from emlib.training.rl.condition import Condition
from emlib.training.rl.grpo import STOPPED, RlSummary
from emlib.training.rl.records import COMPLETIONS, read_steps
from tests.made import some_rows
from tests.training.rl.reinforcing import LORA, SYSTEM, alternating, by_length, train, weights
from tests.training.rl.test_resuming import comparable

PROBLEMS, STEPS = 10, 5


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    write_inputs(tmp_path / "inputs", {}, some_rows(2), {("pirate", 2): vector / vector.norm()}, end_of_turn=False,
                 drawn=False)
    return tmp_path / "inputs"


def stopping(tiny: ChatModel, folder: Path, inputs: Path, drift: float | None,
             score: object = by_length) -> tuple[RlSummary, dict[str, Tensor]]:
    artefacts = {"monitor_inputs": inputs}
    with new_lora(tiny.model, LORA, 0) as model:
        done = train(model, tiny, folder, problems=PROBLEMS, score=score,  # type: ignore[arg-type]
                     condition=Condition(SYSTEM, (DriftStop(drift=drift, layer=2, every=1),), artefacts))
        return done, weights(model)


@pytest.fixture
def drifts(tiny: ChatModel, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The drift after each step of a run that never stops."""
    found: list[float] = []
    read = ModelReader.read

    def noted(self: ModelReader, step: int) -> object:
        reading = read(self, step)
        found.append(reading.first or 0.0)
        return reading

    with monkeypatch.context() as patch:
        patch.setattr(ModelReader, "read", noted)
        done, _ = stopping(tiny, tmp_path / "never", inputs, 1e6)
    assert done.steps == len(found) == STEPS
    return found


def between(drifts: list[float]) -> tuple[float, int]:
    """A threshold half-way between the two largest drifts, which rounding does not reach, and the step above it."""
    *_, second, largest = sorted(drifts)
    return (second + largest) / 2, 1 + drifts.index(largest)


def test_it_stops_after_the_first_step_above_the_drift(
        tiny: ChatModel, inputs: Path, drifts: list[float], tmp_path: Path) -> None:
    """Until then the log is that of plain GRPO."""
    threshold, first = between(drifts)
    done, _ = stopping(tiny, tmp_path / "stopped", inputs, threshold)
    assert (done.steps, (tmp_path / "stopped" / STOPPED).read_text()) == (first, str(first))
    assert done.best_step <= first
    with new_lora(tiny.model, LORA, 0) as model:
        train(model, tiny, tmp_path / "plain", problems=PROBLEMS)
    losses = [[one.loss for one in read_steps(tmp_path / name)] for name in ("plain", "stopped")]
    assert losses[1] == pytest.approx(losses[0][:first], abs=1e-5)


def test_its_null_option_is_plain_grpo(tiny: ChatModel, inputs: Path, tmp_path: Path) -> None:
    done, found = stopping(tiny, tmp_path / "null", inputs, None)
    with new_lora(tiny.model, LORA, 0) as model:
        plain = train(model, tiny, tmp_path / "plain", problems=PROBLEMS)
        torch.testing.assert_close(found, weights(model))
    assert (done.steps, done.best_step) == (plain.steps, plain.best_step)
    assert done.train_reward == pytest.approx(plain.train_reward)


def test_beside_supervised_steps_it_looks_every_few_rl_steps_and_stops(
        tiny: ChatModel, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RL steps are every second step there. Until it stops, the log is that of the other defense alone."""
    looked: list[int] = []

    def drifting(self: ModelReader, step: int) -> Reading:
        looked.append(step)
        return Reading(step, {"pirate 2": float(step)}, {}, 0.0, 0.0)

    monkeypatch.setattr(ModelReader, "read", drifting)
    alone = alternating(tiny, 0.5)
    both = replace(alone, defenses=(*alone.defenses, DriftStop(drift=3.0, layer=2, every=2)),
                   artefacts={"monitor_inputs": inputs})
    steps = []
    for name, condition in (("alone", alone), ("both", both)):
        with new_lora(tiny.model, LORA, 0) as model:
            steps.append(train(model, tiny, tmp_path / name, problems=PROBLEMS, condition=condition).steps)
    assert (looked, steps) == ([2, 4], [STEPS, 4])
    losses = [[one.loss for one in read_steps(tmp_path / name)] for name in ("alone", "both")]
    assert losses[1] == pytest.approx(losses[0][:4], abs=1e-5)


@pytest.mark.parametrize("at", ["before", "between"])
def test_a_run_that_is_killed_before_it_stops_or_while_it_does_ends_in_the_same_numbers(
        tiny: ChatModel, inputs: Path, drifts: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        at: str) -> None:
    """Between: the decision is on disk, and the checkpoint that goes with it is not."""
    calls: list[int] = []
    threshold, first = between(drifts)

    def interrupted(batch: Sequence[Scored]) -> list[Rewards | None]:
        calls.append(1)
        if at == "before" and len(calls) == first:
            raise KeyboardInterrupt
        return by_length(batch)

    def not_saved(folder: Path, step: int, *rest: object) -> None:
        if step == first:
            raise KeyboardInterrupt
        saved(folder, step, *rest)  # type: ignore[arg-type]

    saved = checkpoint.save
    whole, expected = stopping(tiny, tmp_path / "whole", inputs, threshold)
    with monkeypatch.context() as patch:
        if at == "between":
            patch.setattr(checkpoint, "save", not_saved)
        with pytest.raises(KeyboardInterrupt):
            stopping(tiny, tmp_path / "killed", inputs, threshold, interrupted)
    again, found = stopping(tiny, tmp_path / "killed", inputs, threshold)
    assert (again.steps, again.best_step) == (whole.steps, whole.best_step)
    steps = [read_steps(tmp_path / name) for name in ("whole", "killed")]
    for value in ("loss", "reward", "tokens"):
        first_run, second_run = ([getattr(one, value) for one in log] for log in steps)
        assert second_run == pytest.approx(first_run, abs=1e-5)
    texts = [[one["text"] for one in comparable(tmp_path / name, COMPLETIONS)] for name in ("whole", "killed")]
    assert texts[0] == texts[1]
    torch.testing.assert_close(found, expected)
    once_more, _ = stopping(tiny, tmp_path / "killed", inputs, threshold, score=None)  # nothing is left to score
    assert once_more.steps == first


class Patience(GrpoDefense):
    """It stops after so many looks, which it counts, and a look takes 10 seconds."""

    kind: Literal["patience"] = "patience"
    looks: int = 4
    _seen: int = PrivateAttr(default=0)

    def on_step(self, record: Any, evaluate: Any) -> bool:
        self._seen += 1
        CLOCK.now += 10
        return self._seen >= self.looks

    def state(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._seen = state["seen"]


CLOCK = SimpleNamespace(now=0.0)


def test_a_run_that_is_killed_remembers_what_a_defense_counted(tiny: ChatModel, tmp_path: Path) -> None:
    """It is killed in step 4, and the checkpoint is after step 2."""
    calls: list[int] = []

    def interrupted(batch: Sequence[Scored]) -> list[Rewards | None]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return by_length(batch)

    def patient(score: object = by_length) -> RlSummary:
        with new_lora(tiny.model, LORA, 0) as model:
            return train(model, tiny, tmp_path, problems=PROBLEMS, score=score,  # type: ignore[arg-type]
                         condition=Condition(SYSTEM, (Patience(),)))

    with pytest.raises(KeyboardInterrupt):
        patient(interrupted)
    assert len(read_steps(tmp_path)) == 3
    assert patient().steps == 4


def test_the_seconds_of_a_step_include_what_a_defense_computes_after_it(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo, "time", SimpleNamespace(perf_counter=lambda: CLOCK.now))
    train(lora, tiny, tmp_path, condition=Condition(SYSTEM, (Patience(),)))
    assert [one.seconds for one in read_steps(tmp_path)] == [10, 10]
