"""Reinforcement learning on a CPU: emlib's GRPO against TRL's own, and what of a step is neither sampling nor loss.

Plain GRPO with the settings of the profile `demo`. Both sides get the same model with the same fresh adapter, the same
prompts and rewards; TRL's trainer samples by transformers' `generate`. No token ends a completion, so that all
have the full length and both sides the same work. Of emlib's step, drawing is the time of the sampler, loss
that of the forward and backward passes; everything else that happens until the weights are updated counts as outside:
TRL's and transformers' trainers, the reward, the update. That is measured in float32 too, which is the harder test. The
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
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer

from emlib.config import load_profile
from emlib.core import paths
from emlib.core.records import Message
from emlib.data.gsm8k import Problem, additions, load_problems
from emlib.data.sources import locate
from emlib.evaluation.rewards import Scored, by_rule, rewards
from emlib.models.adapters import new_lora
from emlib.models.load import ChatModel, load
from emlib.training.rl import grpo, rollouts
from emlib.training.rl.records import read_steps

NAME = "grpo_cpu"
STEPS, REPEATS = 7, 200
OUTSIDE, REWARD_MS = 0.10, 1.0  # the bars: at most
AGAINST_TRL = 2.0  # the bar: at least
DTYPES = tuple(dict.fromkeys(["float32", machine.dtype()]))
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
    """Steps of emlib and of TRL's own trainer, and the rewards of some texts."""
    os.environ["EMLIB_HEADLESS"] = "1"
    rollouts.stop_tokens = lambda *_: {-1}  # no token ends a completion
    by_trl = {dtype: trl_steps(dtype) for dtype in DTYPES}  # first: it changes nothing that emlib's steps use
    trained = {dtype: steps(dtype) for dtype in DTYPES}
    for dtype in DTYPES:
        say(f"{dtype}: {second(trained[dtype]):.2f} s a step, TRL's own {second(by_trl[dtype]):.2f} s, others took "
            f"{max(trained[dtype]['others'], by_trl[dtype]['others']):.0%} of the machine")
    training, scoring = trained["float32"], {name: reward_ms(text) for name, text in TEXTS.items()}
    slowest = max(scoring.values())
    ratios = {dtype: round(second(by_trl[dtype]) / second(trained[dtype]), 3) for dtype in DTYPES}
    return {"training": training, "dtypes": trained, "trl": by_trl, "reward_ms": scoring,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl", "accelerate")},
            "bars": [
                *({"what": f"a step's speed against TRL's own, {dtype}", "bar": f">= {AGAINST_TRL}",
                   "measured": ratio, "met": ratio >= AGAINST_TRL} for dtype, ratio in ratios.items()),
                {"what": "share of a step outside drawing and loss", "bar": f"<= {OUTSIDE}",
                 "measured": training["outside_share"], "met": training["outside_share"] <= OUTSIDE},
                {"what": "rule rewards, ms a completion (the slowest text)", "bar": f"< {REWARD_MS}",
                 "measured": slowest, "met": slowest < REWARD_MS}]}


def table(result: dict[str, Any]) -> list[str]:
    """What was measured, as Markdown: the steps but for the first, and the rewards."""
    lines = ["| dtype | s a step | TRL's own |", "|---|---:|---:|",
             *(f"| {dtype} | {second(result['dtypes'][dtype]):.2f} | {second(result['trl'][dtype]):.2f} |"
               for dtype in result["trl"]),
             "", "| step | seconds | drawing | loss | outside |", "|---:|---:|---:|---:|---:|"]
    parts = ("seconds", "drawing_seconds", "loss_seconds", "outside_seconds")
    rows = list(zip(*(result["training"][part] for part in parts), strict=True))
    lines += [f"| {number} | " + " | ".join(f"{one:.2f}" for one in row) + " |"
              for number, row in enumerate(rows, 1) if number > 1]
    return [*lines, "", "| completion | ms |", "|---|---:|",
            *(f"| {name} | {took:.3f} |" for name, took in result["reward_ms"].items())]


def second(run: dict[str, Any]) -> float:
    """The median seconds of a step, without the first."""
    return median(run["seconds"][1:])


def job(dtype: str) -> tuple[Any, ChatModel, list[Problem], grpo.Condition]:
    """What both sides train: the demo's profile, its model, the problems, and how they are asked."""
    profile = load_profile("demo")
    assert profile.grpo is not None, "the demo has a section grpo"
    chat = load(profile.model.model_copy(update={"dtype": dtype}), paths.cache())
    worked = load_problems(profile.grpo.data, locate).worked
    return (profile, chat, additions()[:STEPS * profile.grpo.prompts_per_step],
            grpo.Condition(profile.grpo.prompt, worked=worked))


class Clock(TrainerCallback):
    """The seconds of each step of a trainer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it: the weights are updated."""
        self.seconds.append(round(time.perf_counter() - self.started, 4))


def trl_steps(dtype: str) -> dict[str, Any]:
    """The seconds of each step of TRL's trainer as it is, with emlib's settings."""
    profile, chat, problems, condition = job(dtype)
    turns = [Message("system", condition.system), *condition.worked]
    rows = [{"prompt": [turn.to_dict() for turn in (*turns, Message("user", problem.question))],
             "answer": problem.answer} for problem in problems]

    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        scored = by_rule([Scored("", turns[-1]["content"], right)
                          for turns, right in zip(completions, answer, strict=True)])
        return [one.total for one in scored if one is not None]

    with new_lora(chat.model, profile.lora, 0) as model, tempfile.TemporaryDirectory() as folder:
        arguments = grpo._arguments(profile.grpo, condition.beta, 0, Path(folder))
        arguments.generation_kwargs = {"min_new_tokens": profile.grpo.sampling.max_new_tokens}
        clock, others = Clock(), machine.Others()
        trainer = GRPOTrainer(model, [reward], arguments, Dataset.from_list(rows), processing_class=chat.tokenizer,
                              callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "reward" in log]
        return {"seconds": clock.seconds, "tokens_a_completion": lengths, "others": others.share(), "dtype": dtype}


def steps(dtype: str) -> dict[str, Any]:
    """The seconds of each step, in parts."""
    profile, chat, problems, condition = job(dtype)
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
            "dtype": dtype}


def reward_ms(text: str) -> float:
    """Milliseconds of one completion's four parts, the median of many."""
    took = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        rewards(text, "72")
        took.append(time.perf_counter() - started)
    return round(1000 * median(took), 4)
