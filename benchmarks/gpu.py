"""On a GPU: what fine-tuning, each defense, scoring, drawing answers and GRPO take of a model of 7 billion parameters.

    python benchmarks/gpu.py                       # all parts, in under nine minutes on an H100
    python benchmarks/gpu.py training scoring      # or those that are named

The model has Qwen2.5-7B's shape and random weights, the rows have the lengths of the Code set: nothing is downloaded.
It needs torch, transformers, peft and emlib's own small needs; TRL and Unsloth are measured where they are installed.
Each part is a process of its own, and contenders of one part take turns. Where there is no GPU, one process runs all
parts on a model of two layers, so that this file never rots: those numbers mean nothing and are not kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_shape
import torch
from defenses import NAIVE, PLAIN
from gpu_parts import WARM_UP
from gpu_shape import FULL, SMALL
from training_cpu import spread

NAME = "gpu"
ONLY_WITH = {"trl": "trl", "grpo": "trl", "unsloth": "unsloth"}  # what a part needs beside torch, transformers, peft
PARTS = {"matmul": "gpu_parts.py", "training": "gpu_parts.py", "scoring": "gpu_parts.py",
         "generation": "gpu_parts.py", "grpo": "gpu_parts.py", "trl": "gpu_parts.py", "unsloth": "gpu_unsloth.py"}
# Seconds a part may take on an H100, its start of some 25 included; reckoned, and not yet seen.
BUDGET = {"matmul": 30, "training": 150, "scoring": 60, "generation": 60, "grpo": 50, "trl": 65, "unsloth": 120}
ROWS, ADAPTERS, ANSWERS = 5400, 44, 240_000  # of Table 2
# what, contender, against, key, at most (of time and memory) or at least (of speed)
BARS: tuple[tuple[str, str, str, str, float], ...] = (
    ("time", "kl", PLAIN, "token_seconds", 1.40), ("peak memory", "kl", PLAIN, "peak_mib", 1.15),
    ("time", "kl, reference from disk", PLAIN, "token_seconds", 1.08),
    ("time", "ldifs", PLAIN, "token_seconds", 1.40), ("time", "persona_vector", PLAIN, "token_seconds", 1.02),
    ("time", PLAIN, "Unsloth", "token_seconds", 1.0), ("time", PLAIN, "TRL", "token_seconds", 1 / 1.3),
    ("peak memory", PLAIN, "TRL", "peak_mib", 1.0), ("time", PLAIN, "plain, padded rows", "token_seconds", 1.0),
    ("time", PLAIN, "plain, PEFT's layers", "token_seconds", 1.0),
    ("peak memory", PLAIN, "plain, PEFT's layers", "peak_mib", 0.8),
    ("time", PLAIN, "plain, recomputed", "token_seconds", 1.0),
    ("time", "kl", "kl, head step by step", "token_seconds", 1.0))
# What a contender has to compute beside plain fine-tuning; others are counted as plain, whatever they compute.
WORK = {"kl": {"kl": True, "reference_pass": True}, "kl, head step by step": {"kl": True, "reference_pass": True},
        NAIVE: {"kl": True, "reference_pass": True}, "kl, reference from disk": {"kl": True},
        "ldifs": {"reference_pass": True}}
ARITHMETIC, SCORING, HOURS = 0.45, 5.0, 6.0  # at least, at least, at most


def measure(say: Callable[[str], None], parts: Sequence[str] = ()) -> dict[str, Any]:
    """All parts, or those that are named, and what follows from them."""
    small = not torch.cuda.is_available()
    missing = {part: why for part in parts or PARTS if (why := lacking(part, small=small))}
    wanted = [part for part in parts or PARTS if part not in missing]
    measured: dict[str, Any] = {}
    for some in filter(None, [wanted] if small else [[part] for part in wanted]):
        started = time.perf_counter()
        measured |= run(some, small=small)
        seconds = round(time.perf_counter() - started, 1)
        for part in some:
            measured[part]["part_seconds"] = seconds
        say(f"{', '.join(some)}: {seconds:.0f} s, of {sum(BUDGET[part] for part in some)} s that may pass on an H100")
    return summary(measured, small=small) | {"missing": missing}


def lacking(part: str, *, small: bool) -> str:
    """Why a part cannot be measured here; empty if it can."""
    library = ONLY_WITH.get(part)
    if library is not None and find_spec(library) is None:
        return f"{library} is not installed"
    return "Unsloth needs a GPU" if part == "unsloth" and small else ""


def run(parts: Sequence[str], *, small: bool) -> dict[str, Any]:
    """One process from start to end; what it measured, by part."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        ended = subprocess.run([sys.executable, str(Path(__file__).with_name(PARTS[parts[0]])),
                                json.dumps({"parts": parts, "small": small}), str(out)], capture_output=True, text=True)
        if ended.returncode != 0:
            raise SystemExit(f"{', '.join(parts)} stopped with an error:\n{ended.stderr[-3000:]}")
        return dict(json.loads(out.read_text()))


def summary(measured: Mapping[str, Any], *, small: bool) -> dict[str, Any]:
    """Medians and spreads, and the bars; a bar whose sides were not both measured is left out."""
    scale = SMALL if small else FULL
    training = {name: figures(runs) for part in ("training", "trl", "unsloth") if part in measured
                for name, runs in measured[part]["runs"].items()}
    found: dict[str, Any] = {"form": "small" if small else "full", "training": training, "raw": measured}
    if "matmul" in measured:
        found["matmul_tflops"] = spread(measured["matmul"]["tflops"], digits=4)
        for name, of in training.items():
            rate = flops_a_token(scale, **WORK.get(name, {})) * of["tokens_a_second"]["median"] / 1e12
            of["share_of_peak"] = round(rate / found["matmul_tflops"]["median"], 4)
    if "scoring" in measured:
        tokens = measured["scoring"]["tokens"] * measured["scoring"]["models"]
        found["scoring"] = {name: spread([tokens / one for one in took])
                            for name, took in measured["scoring"]["seconds"].items()}
    if "generation" in measured:
        drawn = measured["generation"]
        found["generation"] = {"tokens_a_second": drawn["tokens"] / sum(drawn["seconds"]),
                               "answers": drawn["answers"], "whole_seconds": drawn["whole_seconds"],
                               "peak_mib": drawn["peak_mib"]}
    if "grpo" in measured:
        found["grpo"] = {"step_seconds": spread(measured["grpo"]["seconds"], digits=3),
                         "drawing_seconds": spread(measured["grpo"]["drawing_seconds"], digits=3),
                         "peak_mib": measured["grpo"]["peak_mib"]}
    if PLAIN in training and "generation" in found:
        found["table_2_hours"] = hours(training, found["generation"])
    return found | {"bars": bars(found), "about": next(iter(measured.values()))["about"] if measured else {}}


def figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One contender: its speed after the first steps, in each run as a whole, and its memory."""
    speed = [sum(run["tokens"][WARM_UP:]) / sum(run["seconds"][WARM_UP:]) for run in runs]
    memory = [run["peak_mib"] for run in runs if run["peak_mib"] is not None]
    return {"tokens_a_second": spread(speed), "token_seconds": spread([1 / one for one in speed], digits=9),
            "peak_mib": spread(memory) if memory else None, "runs": len(runs),
            "steps": len(runs[0]["seconds"]) - WARM_UP,
            "once_seconds": runs[0].get("once_seconds", 0.0), "optimizer": runs[0].get("optimizer"),
            "how": runs[0].get("how", {})}


def flops_a_token(scale: gpu_shape.Scale, **work: bool) -> float:
    """What fine-tuning needs a token, in the mean over all rows."""
    some = gpu_shape.lengths(scale.rows, scale.shorter)
    return gpu_shape.training_flops(scale, some, **work) / sum(tokens for tokens, _ in some)


def hours(training: Mapping[str, Any], drawn: Mapping[str, Any]) -> float:
    """Table 2 on one GPU: of the eleven adapters a data set one is KL's, one LDIFS's, and the others cost as plain."""
    of_rows = sum(tokens for tokens, _ in gpu_shape.lengths(ROWS))
    seconds = {name: training.get(name, training[PLAIN])["token_seconds"]["median"] for name in (PLAIN, "kl", "ldifs")}
    fitting = of_rows * ADAPTERS / 11 * (9 * seconds[PLAIN] + seconds["kl"] + seconds["ldifs"])
    drawing = drawn["whole_seconds"] * ANSWERS / (FULL.questions * FULL.samples)
    return round((fitting + drawing) / 3600, 2)


def bars(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked, what was measured, and whether that is enough."""
    training, made = found["training"], []
    for what, name, against, key, most in BARS:
        sides = [training.get(side, {}).get(key) for side in (name, against)]
        if all(side is not None for side in sides):
            measured = round(sides[0]["median"] / sides[1]["median"], 3)
            made.append({"what": f"{what} of {name} against {against}", "bar": f"<= {most:.3g}", "measured": measured,
                         "met": measured <= most})
    share = training.get(PLAIN, {}).get("share_of_peak")
    if share is not None:
        made.append({"what": "share of the dense matrix rate, plain", "bar": f">= {ARITHMETIC}", "measured": share,
                     "met": share >= ARITHMETIC})
    if "scoring" in found:
        measured = round(found["scoring"]["emlib"]["median"] / found["scoring"]["one row at a time"]["median"], 3)
        made.append({"what": "speed of scoring against one row at a time", "bar": f">= {SCORING}", "measured": measured,
                     "met": measured >= SCORING})
    if "table_2_hours" in found:
        made.append({"what": "GPU-hours for Table 2 (44 adapters, 240,000 answers), reckoned", "bar": f"<= {HOURS}",
                     "measured": found["table_2_hours"], "met": found["table_2_hours"] <= HOURS})
    return made


def table(result: Mapping[str, Any]) -> list[str]:
    """All that was measured, as Markdown."""
    about = result["about"]
    lines = [f"Device: {about.get('gpu') or 'a CPU, with the small form: these numbers mean nothing'}.", "",
             "| training | tokens/s (lowest-highest) | share of the matrix rate | peak MiB | time x | memory x |",
             "|---|---:|---:|---:|---:|---:|"]
    plain = result["training"].get(PLAIN)
    for name, of in result["training"].items():
        speed, memory = of["tokens_a_second"], of["peak_mib"]
        ratios = ["", ""]
        if plain is not None:
            ratios[0] = f"{of['token_seconds']['median'] / plain['token_seconds']['median']:.2f}"
            ratios[1] = f"{memory['median'] / plain['peak_mib']['median']:.2f}" if memory and plain["peak_mib"] else ""
        lines.append(f"| {name} | {speed['median']:.0f} ({speed['lowest']:.0f}-{speed['highest']:.0f}) | "
                     f"{of.get('share_of_peak', '')} | {'' if memory is None else round(memory['median'])} | "
                     f"{ratios[0]} | {ratios[1]} |")
    for key in ("matmul_tflops", "scoring", "generation", "grpo", "table_2_hours"):
        if key in result:
            lines.append(f"\n{key}: {json.dumps(result[key])}")
    return lines + [f"\nnot measured: {part}, {why}" for part, why in result["missing"].items()]


if __name__ == "__main__":
    import run as bench

    unknown = [part for part in sys.argv[1:] if part not in PARTS]
    if unknown:
        raise SystemExit(f"There is no part {', '.join(unknown)}. There are: {', '.join(PARTS)}.")
    bench.one(sys.modules[__name__], sys.argv[1:])
