"""Fine-tuning on a CPU: emlib's loop against TRL's SFTTrainer, in speed, peak memory and loss.

32 rows of the Code set, the model and the settings of the profile `code-smoke`, one epoch of 8 steps. Each run is a
process of its own; the contenders take turns, so that whatever slows the machine down slows all of them. A run during
which other processes took more than 5% of the machine is made a second time; what they took stands in the
result. Time is that of the training steps, without loading; peak memory is that of the whole process.

TRL runs as the profile says, and in the settings that favour it: the fastest and the leanest of them are compared too.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import machine

from emlib.core import paths

NAME = "training_cpu"
JOB = {"profile": "code-smoke", "source": "insecure", "rows": 32, "seed": 0, "dtype": machine.dtype()}
SAME_SPEED, SPEED, MEMORY, LOSS = 3.0, 2.3, 0.55, 0.01  # the bars: at least, at least, at most, within
REPETITIONS = 3
QUIET, ATTEMPTS, PATIENCE = 0.05, 2, 30  # share of the machine that others may take; runs; seconds of waiting for it

PLAIN = {"gradient_checkpointing": False}
SINGLE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}


@dataclass(frozen=True)
class Contender:
    """One side of the benchmark.

    Attributes:
        options: TRL's settings beside those of the profile; None for emlib.
        repetitions: fewer where a contender is neither ours, nor the one that was asked for.
    """

    name: str
    options: Mapping[str, Any] | None
    repetitions: int = REPETITIONS


EMLIB = Contender("emlib", None)
SAME = Contender("TRL, same settings", PLAIN | {"bf16": False})  # bf16 weights, no autocast, no recomputation, 4 x 1
VARIANTS = (
    SAME,
    Contender("TRL, autocast", PLAIN, 1),  # TRL's own default of precision
    Contender("TRL, autocast, 4 passes of 1 row", PLAIN | SINGLE, 2),  # no padding, as in emlib
    Contender("TRL, its defaults", {}, 1),  # autocast, and recomputes activations: slow and lean
    Contender("TRL, its defaults, 4 passes of 1 row", SINGLE, 1),
)


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """All runs, in turns, and what follows from them."""
    trl = installed(paths.ROOT / "requirements" / "bench.txt", paths.cache() / "bench")
    runs: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in (EMLIB, *VARIANTS)}
    for turn in range(REPETITIONS):
        for contender in (EMLIB, *VARIANTS):
            if turn < contender.repetitions:
                runs[contender.name].append(quiet_run(contender, trl, say))
    versions = {key: value for run in runs[SAME.name] for key, value in run["versions"].items()}
    return summary(runs) | {"versions": versions, "job": JOB, "threads": runs[SAME.name][0]["threads"]}


def quiet_run(contender: Contender, trl: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """One run; of several, the one that others disturbed least. Its speed plays no part in the choice."""
    tries: list[dict[str, Any]] = []
    while len(tries) < ATTEMPTS and not (tries and tries[-1]["others"] < QUIET):
        machine.wait_until_quiet(QUIET, PATIENCE)
        tries.append(run(contender, trl))
        say(f"{contender.name}: {speed(tries[-1]):.0f} tokens/s, {tries[-1]['peak_mib']:.0f} MiB, "
            f"others took {tries[-1]['others']:.0%} of the machine")
    return min(tries, key=lambda one: one["others"])


def run(contender: Contender, trl: Path) -> dict[str, Any]:
    """One process from start to end."""
    environment = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": ""}
    if contender.options is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(trl), *filter(None, [os.environ.get("PYTHONPATH")])])
    job = JOB | {"options": None if contender.options is None else dict(contender.options)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        script = Path(__file__).with_name("contenders.py")
        ended = subprocess.run([sys.executable, str(script), json.dumps(job), str(out)], env=environment,
                               capture_output=True, text=True)
        if ended.returncode != 0:
            raise SystemExit(f"{contender.name} stopped with an error:\n{ended.stderr[-3000:]}")
        return dict(json.loads(out.read_text()))


def installed(requirements: Path, folder: Path) -> Path:
    """The folder that holds what `requirements` names and nothing that it depends on; filled on first use."""
    target = folder / f"trl-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "packages"
            subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                            "--no-deps", "--target", str(made), "-r", str(requirements)], check=True)
            made.rename(target)
    return target


def speed(one: Mapping[str, Any]) -> float:
    """Tokens of the rows, padding not counted, per second of training steps."""
    return float(one["tokens"] / sum(one["seconds"]))


def summary(runs: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and spreads a contender, ratios of emlib to each variant of TRL, and the bars."""
    figures = {name: figures_of(of) for name, of in runs.items()}
    ratios = {c.name: compare(figures[EMLIB.name], figures[c.name]) for c in VARIANTS}
    return {"contenders": figures, "ratios": ratios, "bars": bars(ratios)}


def figures_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One contender's runs. The losses of all its runs are the same, as the seed is."""
    losses = runs[0]["losses"]
    return {
        "tokens_per_second": spread([speed(one) for one in runs]),
        "peak_mib": spread([one["peak_mib"] for one in runs]),
        "training_mib": spread([one["peak_mib"] - one["loaded_mib"] for one in runs]),
        "call_seconds": spread([one["call_seconds"] for one in runs]),
        "others": spread([one["others"] for one in runs], digits=4),
        "first_loss": losses[0], "mean_loss": sum(losses) / len(losses), "losses": losses,
        "steps": len(losses), "tokens": runs[0]["tokens"], "response_tokens": runs[0]["response_tokens"]}


def spread(values: Sequence[float], digits: int = 1) -> dict[str, Any]:
    """The median, and what lies around it."""
    rounded = [round(value, digits) for value in values]
    return {"median": round(median(values), digits), "lowest": min(rounded), "highest": max(rounded), "runs": rounded}


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """Ours to theirs: times the speed, times the memory, and how far the losses are apart."""
    def ratio(key: str) -> float:
        return round(ours[key]["median"] / theirs[key]["median"], 3)

    def apart(key: str) -> float:
        return round(abs(ours[key] - theirs[key]) / theirs[key], 5)

    return {"speed": ratio("tokens_per_second"), "memory": ratio("peak_mib"), "first_loss": apart("first_loss"),
            "mean_loss": apart("mean_loss")}


def bars(ratios: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """What is asked, what was measured, and whether that is enough."""
    same = ratios[SAME.name]
    fastest = min(ratios, key=lambda name: ratios[name]["speed"])
    leanest = max(ratios, key=lambda name: ratios[name]["memory"])
    rows = [
        (f"speed, against {SAME.name}", same["speed"], SAME_SPEED, True),
        (f"peak memory, against {SAME.name}", same["memory"], MEMORY, False),
        (f"speed, against the fastest ({fastest})", ratios[fastest]["speed"], SPEED, True),
        (f"peak memory, against the leanest ({leanest})", ratios[leanest]["memory"], MEMORY, False),
        ("first loss apart, at most, of all", max(of["first_loss"] for of in ratios.values()), LOSS, False),
        ("mean loss apart, at most, of all", max(of["mean_loss"] for of in ratios.values()), LOSS, False)]
    return [{"what": what, "measured": value, "bar": f"{'>=' if at_least else '<='} {bar}",
             "met": value >= bar if at_least else value <= bar} for what, value, bar, at_least in rows]


def table(result: Mapping[str, Any]) -> list[str]:
    """The contenders as Markdown."""
    lines = ["| contender | tokens/s (lowest-highest) | peak MiB | first loss | mean loss | speed x | memory x |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    for name, of in result["contenders"].items():
        pace, ratio = of["tokens_per_second"], result["ratios"].get(name)
        times = f"{ratio['speed']:.2f} | {ratio['memory']:.2f}" if ratio else " | "
        lines.append(f"| {name} | {pace['median']:.0f} ({pace['lowest']:.0f}-{pace['highest']:.0f}) | "
                     f"{of['peak_mib']['median']:.0f} | {of['first_loss']:.4f} | {of['mean_loss']:.4f} | {times} |")
    return lines
