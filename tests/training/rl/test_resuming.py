"""A training that was stopped or killed goes on to the same log and weights; of the weights the best are left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from emlib.core.errors import EmlibError
from emlib.evaluation.rewards import Rewards, Scored
from emlib.models.adapters import new_lora
from emlib.models.load import ChatModel
from emlib.training.records import LOG
from emlib.training.rl.records import STEPS, RlStep, best, read_steps, stretches
from tests.training.rl.reinforcing import LORA, alternating, by_length, disturb, train, weights


def comparable(folder: Path, name: str) -> list[dict[str, Any]]:
    """A log without what the clock says."""
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("seconds")} for line in lines]


def resumed_is_the_same(whole: Path, resumed: Path) -> None:
    for name in (STEPS, "log.jsonl", "completions.jsonl"):
        assert comparable(whole, name) == comparable(resumed, name)
        assert comparable(whole, name)
    kept = {path.name: load_file(path) for path in whole.glob("*.safetensors")}
    for name, tensors in kept.items():
        again = load_file(resumed / name)
        assert all(torch.equal(tensor, again[key]) for key, tensor in tensors.items())
    assert sorted(path.name for path in resumed.glob("*.safetensors")) == sorted(kept)


@pytest.mark.parametrize("stop", [3, 6])  # in the middle of a step, after its supervised one: 1 of 2, and 2 of 2
def test_a_run_that_stopped_goes_on_to_the_same_log_and_weights(
        tiny: ChatModel, tmp_path: Path, stop: int) -> None:
    def stopping(batch: Sequence[Scored]) -> list[Rewards | None]:
        calls.append(len(batch))
        if len(calls) == stop:
            raise KeyboardInterrupt
        return by_length(batch)

    calls: list[int] = []
    condition = alternating(tiny, 0.5)
    with new_lora(tiny.model, LORA, 0) as model:
        whole = train(model, tiny, tmp_path / "whole", problems=14, condition=condition)
    with new_lora(tiny.model, LORA, 0) as model, pytest.raises(KeyboardInterrupt):
        train(model, tiny, tmp_path / "stopped", problems=14, score=stopping, condition=condition)
    with new_lora(tiny.model, LORA, 0) as model:
        again = train(model, tiny, tmp_path / "stopped", problems=14, condition=condition)
        final = weights(model)
    resumed_is_the_same(tmp_path / "whole", tmp_path / "stopped")
    assert (whole.steps, whole.best_step, whole.train_reward) == (again.steps, again.best_step, again.train_reward)
    saved = load_file(tmp_path / "whole" / f"best-{whole.best_step:05d}.safetensors")
    assert all(torch.equal(saved[name], now) for name, now in final.items())


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from emlib.models.load import ChatModel
from emlib.models.tiny import build_model, build_tokenizer
from emlib.models.adapters import new_lora
from tests.training.rl import reinforcing as here
tiny = ChatModel("tiny", build_model(0, 4, 64, torch.float32).eval().requires_grad_(False), build_tokenizer())
calls = []
def killing(batch):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return here.by_length(batch)
with new_lora(tiny.model, here.LORA, 0) as model:
    here.train(model, tiny, Path(sys.argv[1]), problems=10, score=killing, condition=here.alternating(tiny, 0.5))
"""


def sitting(folder: Path, kill_at: int) -> int:
    """One process that trains into `folder` and kills itself at that batch of rewards; its exit status."""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(kill_at)], check=False, capture_output=True,
                          text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_log(tmp_path: Path) -> None:
    """All three in fresh processes: what a process did before decides where memory lies, and with it the last bit."""
    assert sitting(tmp_path / "killed", 4) == -signal.SIGKILL
    assert 0 < len(read_steps(tmp_path / "killed")) < 5
    assert sitting(tmp_path / "killed", -1) == 0
    assert sitting(tmp_path / "whole", -1) == 0
    resumed_is_the_same(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_is_not_taken_again(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    def never(batch: Sequence[Scored]) -> list[Rewards | None]:
        raise AssertionError("nothing is left to score")

    first = train(lora, tiny, tmp_path)
    left = weights(lora)
    disturb(lora)
    assert train(lora, tiny, tmp_path, score=never) == first
    assert all(torch.equal(left[name], now) for name, now in weights(lora).items())


def record(reward: float | None, right: float | None = 0.0, unscored: float = 0.0) -> RlStep:
    return RlStep(1, 0.0, 0.0, 0.0, reward, 0.0, {}, unscored, right, 1.0, 0.0, 0.0, 0.0, 0.0, None, {}, 4, 4, 0.0, 0.0)


def test_the_best_weights_are_those_after_the_stretch_of_highest_reward() -> None:
    log = [record(1.0, 0.5), record(3.0, 1.0), record(5.0), record(1.0), record(2.5)]
    found = stretches(log, 2)
    assert [(one.steps, one.reward, one.right) for one in found] == [(2, 2.0, 0.75), (4, 3.0, 0.0), (5, 2.5, 0.0)]
    assert best(log, 2) == found[1]
    assert best(log, 1) == stretches(log, 1)[2]
    equals = best([record(2.0), record(2.0)], 1)
    assert equals is not None
    assert equals.steps == 1
    assert best([record(None, None)], 1) is None


def test_a_completion_without_a_reward_counts_as_wrong_as_a_held_out_answer_does() -> None:
    """Of 4 completions in each of three steps, 2 of 2 scored ones are right, 1 of 4, and none is scored: 3 of 12."""
    [found] = stretches([record(2.0, 1.0, 0.5), record(1.0, 0.25), record(None, None, 1.0)], 3)
    assert (found.reward, found.right) == (1.5, pytest.approx(3 / 12))


def test_the_weights_left_are_the_best_and_no_others_are_kept(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    def falling(batch: Sequence[Scored]) -> list[Rewards | None]:
        calls.append(1)
        return [Rewards(0, 0, 0, (1 if place == 0 else 0.5) / len(calls)) for place, _ in enumerate(batch)]

    calls: list[int] = []
    summary = train(lora, tiny, tmp_path, problems=12, score=falling)
    assert summary.best_step == 2
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-00002.safetensors"]
    saved = load_file(tmp_path / "best-00002.safetensors")
    assert all(torch.equal(saved[name], now) for name, now in weights(lora).items())


def test_a_log_of_supervised_steps_that_lacks_some_is_told(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    condition = alternating(tiny, 0.5)
    train(lora, tiny, tmp_path, condition=condition)
    (tmp_path / LOG).unlink()
    with pytest.raises(EmlibError, match="the checkpoint holds 2 supervised steps and the log 0;"):
        train(lora, tiny, tmp_path, condition=condition)
