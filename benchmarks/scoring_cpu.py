"""Scoring a pool on a CPU: emlib against one row at a time with a model an adapter, and against plain padded batches.

300 rows of Alpaca, SmolLM2, the base and K = 3 adapters with random weights. Each run is a process of its own; a run
during which other processes took more than 5% of the machine is made a second time. Time counts from the first loaded
model on: that of emlib's adapters and that of the plain way's further models is in it. Peak memory is the process's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import machine
import torch
from training_cpu import ATTEMPTS, PATIENCE, QUIET

from emlib.config import load_profile
from emlib.core import paths
from emlib.models import adapters
from emlib.models.load import load

NAME = "scoring_cpu"
JOB = {"profile": "code-smoke", "source": "alpaca", "rows": 300, "token_budget": 2048, "batch_rows": 8,
       "dtype": machine.dtype()}
K = 3
SPEED, MEMORY, BATCHED = 1.6, 0.5, 1.15  # the bars: at least, at most, at least
APART = 0.05  # nats that two ways may differ by in bf16, the mean over rows
CONTENDERS = ("emlib", "plain", "plain, models one after another", "padded batches")


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """One run of each contender, and what follows from them."""
    with tempfile.TemporaryDirectory() as folder:
        job = JOB | {"adapters": [str(path) for path in random_adapters(Path(folder))]}
        runs = {name: quiet_run(job | {"contender": name}, say) for name in CONTENDERS}
    ours = runs["emlib"]
    ratios = {name: {"speed": round(other["seconds"] / ours["seconds"], 3),
                     "memory": round(ours["peak_mib"] / other["peak_mib"], 3),
                     "losses_apart": round(apart(ours["losses"], other["losses"]), 5)}
              for name, other in runs.items() if name != "emlib"}
    figures = {name: {"rows_per_second": round(run["passes"] / run["seconds"], 2), "seconds": round(run["seconds"], 1),
                      "cpu_seconds": round(run["cpu_seconds"], 1),
                      "peak_mib": run["peak_mib"], "others": run["others"]} for name, run in runs.items()}
    return {"contenders": figures, "ratios": ratios, "bars": bars(ratios), "versions": ours["versions"], "job": JOB,
            "adapters": K, "tokens": ours["tokens"], "threads": ours["threads"]}


def random_adapters(folder: Path) -> list[Path]:
    """K adapters of the profile's rank with random weights: what scoring costs does not depend on them."""
    profile = load_profile(str(JOB["profile"]))
    spec = profile.model.model_copy(update={"dtype": JOB["dtype"]})
    chat, places = load(spec, paths.cache()), [folder / str(number) for number in range(K)]
    for number, place in enumerate(places):
        with adapters.new_lora(chat.model, profile.lora, number) as model:
            drawn = torch.Generator().manual_seed(number)
            for name, weights in model.named_parameters():
                if "lora_B" in name:
                    weights.data.copy_(0.01 * torch.randn(weights.shape, generator=drawn))
            adapters.save(model, place, chat.name)
    return places


def quiet_run(job: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """One run; of several, the one that others disturbed least. Its speed plays no part in the choice."""
    tries: list[dict[str, Any]] = []
    while len(tries) < ATTEMPTS and not (tries and tries[-1]["others"] < QUIET):
        machine.wait_until_quiet(QUIET, PATIENCE)
        tries.append(run(job))
        say(f"{job['contender']}: {tries[-1]['passes'] / tries[-1]['seconds']:.1f} rows/s, "
            f"{tries[-1]['peak_mib']:.0f} MiB, others took {tries[-1]['others']:.0%} of the machine")
    return min(tries, key=lambda one: one["others"])


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One process from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        script = Path(__file__).with_name("scoring_contenders.py")
        ended = subprocess.run([sys.executable, str(script), json.dumps(job), str(out)], capture_output=True, text=True,
                               env=dict(os.environ) | {"CUDA_VISIBLE_DEVICES": "", "EMLIB_HEADLESS": "1"})
        if ended.returncode != 0:
            raise SystemExit(f"{job['contender']} stopped with an error:\n{ended.stderr[-3000:]}")
        return dict(json.loads(out.read_text()))


def apart(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """The mean distance of the losses, in nats a token."""
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def bars(ratios: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """What is asked, what was measured, and whether that is enough."""
    plain, batched = ratios["plain"], ratios["padded batches"]
    rows = [("speed, against plain", plain["speed"], SPEED, True),
            ("peak memory, against plain", plain["memory"], MEMORY, False),
            ("speed, against padded batches", batched["speed"], BATCHED, True),
            ("losses apart, at most, of all", max(of["losses_apart"] for of in ratios.values()), APART, False)]
    return [{"what": what, "measured": value, "bar": f"{'>=' if at_least else '<='} {bar}",
             "met": value >= bar if at_least else value <= bar} for what, value, bar, at_least in rows]


def table(result: dict[str, Any]) -> list[str]:
    """The contenders as Markdown."""
    lines = ["| contender | rows/s | peak MiB | speed x | memory x |", "|---|---:|---:|---:|---:|"]
    for name, of in result["contenders"].items():
        ratio = result["ratios"].get(name)
        times = f"{ratio['speed']:.2f} | {ratio['memory']:.2f}" if ratio else " | "
        lines.append(f"| {name} | {of['rows_per_second']:.1f} | {of['peak_mib']:.0f} | {times} |")
    return lines
