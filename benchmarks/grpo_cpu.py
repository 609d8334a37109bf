"""Reinforcement learning on a CPU: what of a step goes neither into drawing completions nor into the loss.

Plain GRPO with the settings of the profile `demo`, in float32, which is the harder test: the faster the model, the more
the rest weighs. Drawing is the time of the sampler, loss that of the forward and backward passes; everything else that
happens until the weights are updated counts as outside: TRL's and transformers' trainers, the reward, the update. The
first step is left out, in which things are made that stay. The rule rewards are timed one completion at a time.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import machine
import torch
from accelerate import Accelerator

from emlib.config import load_profile
from emlib.core import paths
from emlib.data.gsm8k import additions, load_problems
from emlib.data.sources import locate
from emlib.evaluation.rewards import by_rule, rewards
from emlib.models.adapters import new_lora
from emlib.models.load import load
from emlib.training.rl import grpo
from emlib.training.rl.records import read_steps

NAME = "grpo_cpu"
STEPS, REPEATS = 7, 200
OUTSIDE, REWARD_MS = 0.10, 1.0  # the bars: at most
LONG = "<think>" + "She has 48 clips and sells half of them, $1,234.50 in all. " * 35 + "</think>"
TEXTS = {"as asked for": "<think>48 / 2 is 24</think>\n<answer>72</answer>",
         "512 tokens of thinking": f"{LONG}<answer>$1,234.50</answer>",
         "512 tokens without a tag": LONG[7:-8],
         "an answer of 512 tokens": f"<think>hm</think><answer>{LONG[7:-8]}</answer>"}


class Stopwatch:
    """Adds up the time of the calls of some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - started
        return timed


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """One training, and the rewards of some texts."""
    os.environ["EMLIB_HEADLESS"] = "1"
    training, scoring = steps(), {name: reward_ms(text) for name, text in TEXTS.items()}
    say(f"outside {training['outside_share']:.1%} of a step, others took {training['others']:.0%} of the machine")
    slowest = max(scoring.values())
    return {"training": training, "reward_ms": scoring, "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl", "accelerate")},
            "bars": [
                {"what": "share of a step outside drawing and loss", "bar": f"<= {OUTSIDE}",
                 "measured": training["outside_share"], "met": training["outside_share"] <= OUTSIDE},
                {"what": "rule rewards, ms a completion (the slowest text)", "bar": f"< {REWARD_MS}",
                 "measured": slowest, "met": slowest < REWARD_MS}]}


def table(result: dict[str, Any]) -> list[str]:
    """What was measured, as Markdown: the steps but for the first, and the rewards."""
    lines = ["| step | seconds | drawing | loss | outside |", "|---:|---:|---:|---:|---:|"]
    parts = ("seconds", "drawing_seconds", "loss_seconds", "outside_seconds")
    rows = list(zip(*(result["training"][part] for part in parts), strict=True))
    lines += [f"| {number} | " + " | ".join(f"{one:.2f}" for one in row) + " |"
              for number, row in enumerate(rows, 1) if number > 1]
    return [*lines, "", "| completion | ms |", "|---|---:|",
            *(f"| {name} | {took:.3f} |" for name, took in result["reward_ms"].items())]


def steps() -> dict[str, Any]:
    """The seconds of each step, in parts."""
    profile = load_profile("demo")
    assert profile.grpo is not None, "the demo has a section grpo"
    chat = load(profile.model.model_copy(update={"dtype": "float32"}), paths.cache())
    problems = additions()[:STEPS * profile.grpo.prompts_per_step]
    worked = load_problems(profile.grpo.data, locate).worked
    condition = grpo.Condition(profile.grpo.prompt, worked=worked)
    watch, seen = Stopwatch(), [0.0]
    grpo._Trainer.compute_loss = watch.around(grpo._Trainer.compute_loss)  # type: ignore[method-assign]
    Accelerator.backward = watch.around(Accelerator.backward)  # type: ignore[method-assign]

    def score(batch: Any) -> Any:  # called once a step, before its loss
        seen.append(watch.seconds)
        return by_rule(batch)

    with new_lora(chat.model, profile.lora, 0) as model, tempfile.TemporaryDirectory() as folder:
        others = machine.Others()
        grpo.reinforce(model, chat.tokenizer, problems, profile.grpo, condition, score,
                       seed=0, folder=Path(folder))
        share, log = others.share(), read_steps(Path(folder))
    until = [*seen[2:], watch.seconds]
    loss = [after - before for before, after in zip(seen[1:], until, strict=True)]
    whole, drawing = [step.seconds for step in log], [step.drawing_seconds for step in log]
    outside = [w - d - one for w, d, one in zip(whole, drawing, loss, strict=True)]
    return {"seconds": whole, "drawing_seconds": drawing, "loss_seconds": [round(one, 4) for one in loss],
            "outside_seconds": [round(one, 4) for one in outside],
            "outside_share": round(sum(outside[1:]) / sum(whole[1:]), 4), "others": share,
            "completions_a_step": log[0].completions, "tokens_a_completion": [round(step.length, 1) for step in log],
            "dtype": "float32"}


def reward_ms(text: str) -> float:
    """Milliseconds of one completion's four parts, the median of many."""
    took = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        rewards(text, "72")
        took.append(time.perf_counter() - started)
    return round(1000 * median(took), 4)
