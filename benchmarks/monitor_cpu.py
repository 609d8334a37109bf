"""What the live monitor costs on a CPU: the time of its readings, as a share of the training steps between them.

Rows of the Code set with Table 6's 16 rows a step, the model of the profile `code-smoke`, and a monitor at its
defaults: 8 general answers of 64 tokens, 4 held-out rows and 4 other rows, every 20 steps. Steps and readings are
measured one after another in one process, a few of each: a reading takes the same time whenever it is made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import machine
import numpy as np
import torch
from contenders import NEVER, versions

from emlib.config import Monitor, load_profile
from emlib.core import paths
from emlib.data.chat import Encoded, encode_all
from emlib.data.rows import read_examples
from emlib.data.sources import locate
from emlib.evaluation.records import read_readings
from emlib.models.adapters import new_lora
from emlib.models.load import load
from emlib.training.monitor import Watch, write_inputs
from emlib.training.records import read_log
from emlib.training.sft import fine_tune

NAME = "monitor_cpu"
SOURCE, STEPS, ROWS = "insecure", 3, 16
PROMPT = 30  # tokens of a general question in its template
BAR = 0.03


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """Train for some steps, with a reading after each of them."""
    profile, settings = load_profile("code-smoke"), Monitor()
    chat = load(profile.model.model_copy(update={"dtype": machine.dtype()}), paths.cache())
    examples = read_examples(locate(SOURCE))[:STEPS * ROWS + 2 * settings.rows]
    rows = encode_all(chat.tokenizer, examples, profile.training.max_seq_length).rows
    training = profile.training.model_copy(update={
        "batch_size": 4, "gradient_accumulation": ROWS // 4, "checkpoint_every": NEVER, "epochs": 1})
    random = np.random.default_rng(0)
    length = PROMPT + settings.tokens
    answers = [Encoded(random.integers(0, 40_000, length), np.arange(length) >= PROMPT, False)
               for _ in range(settings.questions)]
    with tempfile.TemporaryDirectory() as scratch, new_lora(chat.model, profile.lora, 0) as model:
        inputs, run = Path(scratch) / "inputs", Path(scratch) / "run"
        vector = torch.ones(model.config.hidden_size) / model.config.hidden_size ** 0.5
        write_inputs(inputs, {"held_out": rows[:settings.rows], "pool": rows[settings.rows:2 * settings.rows]}, answers,
                     {("trait", 15): vector}, end_of_turn=False, drawn=False, tokens=settings.tokens, stops=[2],
                     known=None)
        fine_tune(model, rows[2 * settings.rows:], training, seed=0, folder=run,
                  watch=Watch(inputs, settings.model_copy(update={"every": 1})))
        steps = [step.seconds for step in read_log(run)]
        readings = [one.seconds for one in read_readings(run)]
    say(f"steps: {steps}, readings: {readings}")
    share = median(readings) / (settings.every * median(steps))
    return {"steps": steps, "readings": readings, "every": settings.every, "share": round(share, 4),
            "dtype": machine.dtype(), "threads": torch.get_num_threads(), "versions": versions(with_trl=False),
            "bars": [{"what": "time of the readings against the steps", "measured": round(share, 4),
                      "bar": f"<= {BAR}", "met": share <= BAR}]}


def table(result: Mapping[str, Any]) -> list[str]:
    """The durations as Markdown."""
    return ["| a step, s | a reading, s | every | share |", "|---:|---:|---:|---:|",
            f"| {median(result['steps']):.2f} | {median(result['readings']):.2f} | {result['every']} | "
            f"{result['share']:.1%} |"]
