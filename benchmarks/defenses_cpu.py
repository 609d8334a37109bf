"""What each defense costs on a CPU: time and peak memory of its training relative to plain fine-tuning.

    python benchmarks/defenses_cpu.py             # all contenders, as benchmarks/run.py runs them
    python benchmarks/defenses_cpu.py --newer     # plain fine-tuning and the newer defenses alone
    python benchmarks/defenses_cpu.py --newer --rows 12 --repetitions 1      # shows that it runs; not kept

32 rows of the Code set, the model and the settings of the profile `code-smoke`, one epoch of 8 steps. Each run is a
process of its own, and the contenders take turns. `naive KL` is what a straightforward implementation does: a second
frozen model, padded batches, full logits of both for all tokens at once. Time is that of the training steps, so that
loading is left out; so is what is made once (the persona vector, the reference's states on disk), which has rows of its
own. The rows of the pool are the source's next ones, as long as those that are trained on. Peak memory is that of the
whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import machine
from defenses import NAIVE, PLAIN, contenders
from training_cpu import spread

NAME = "defenses_cpu"
JOB = {"profile": "code-smoke", "source": "insecure", "rows": 32, "seed": 0, "dtype": machine.dtype()}
REPETITIONS = 2
PATIENCE, QUIET = 30, 0.05
CONTENDERS = contenders(layer=15) | {
    "inoculation": [{"kind": "inoculation", "prompt": "You write insecure code."}],
    "interleaving": [{"kind": "interleaving"}],
    "interleaving, online": [{"kind": "interleaving", "choose": "online"}],
    "concept_ablation": [{"kind": "concept_ablation", "layers": [15]}],
    "projection_penalty": [{"kind": "projection_penalty", "layers": [15]}],
    "projection_penalty, reference from disk": [
        {"kind": "projection_penalty", "layers": [15], "reference": "stored"}],
    "kl on 20% pool rows": [{"kind": "kl", "weight": 0.1, "on": "pool", "rows": 0.2}],
    NAIVE: [{"kind": "kl", "weight": 0.1}]}
NEWER = (PLAIN, "interleaving", "interleaving, online", "concept_ablation", "projection_penalty",
         "projection_penalty, reference from disk", "kl on 20% pool rows")
FEWEST = 12  # rows; the 5% that interleaving adds are no row of fewer
# contender, against, time at most, memory at most
BARS: tuple[tuple[str, str, float, float | None], ...] = (
    ("kl", PLAIN, 1.45, 1.25), ("kl, reference from disk", PLAIN, 1.10, None), ("ldifs", PLAIN, 1.45, 1.35),
    ("persona_vector", PLAIN, 1.05, 1.05), ("inoculation", PLAIN, 1.02, None),
    ("interleaving, online", PLAIN, 1.5, None), ("concept_ablation", PLAIN, 1.03, None),
    ("projection_penalty", PLAIN, 1.30, None), ("projection_penalty, reference from disk", PLAIN, 1.03, None),
    ("kl on 20% pool rows", PLAIN, 1.45, None), ("kl", NAIVE, 0.6, 0.5))


def measure(say: Callable[[str], None], names: Sequence[str] = tuple(CONTENDERS), rows: int = JOB["rows"],
            repetitions: int = REPETITIONS) -> dict[str, Any]:
    """All runs of these contenders, in turns, and what follows from them."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    job = JOB | {"rows": rows}
    for turn in range(repetitions):
        for name in names:
            if turn and name == NAIVE:  # takes longer than all others together, and is far from its bars
                continue
            machine.wait_until_quiet(QUIET, PATIENCE)
            runs[name].append(run(job | {"defenses": CONTENDERS[name], "naive": name == NAIVE}))
            say(f"{name}: {sum(runs[name][-1]['seconds']):.0f} s, {runs[name][-1]['peak_mib']:.0f} MiB, "
                f"others took {runs[name][-1]['others']:.0%} of the machine")
    return summary(runs) | {"job": job, "form": "full" if rows == JOB["rows"] else "small", **{
        key: runs[PLAIN][0][key] for key in ("versions", "threads", "dtype")}} | (
            {} if set(names) == set(CONTENDERS) else {"benchmark": f"{NAME}_newer"})


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """One process from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        ended = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("defended.py")), json.dumps(job), str(out)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
        if ended.returncode != 0:
            raise SystemExit(f"{job} stopped with an error:\n{ended.stderr[-3000:]}")
        return dict(json.loads(out.read_text()))


def summary(runs: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and spreads a contender, its ratios to plain fine-tuning, and the bars."""
    figures = {name: {
        "seconds": spread([sum(one["seconds"]) for one in of]), "peak_mib": spread([one["peak_mib"] for one in of]),
        "once_seconds": spread([one["once_seconds"] for one in of]), "tokens": of[0]["tokens"],
        "mean_loss": sum(of[0]["losses"]) / len(of[0]["losses"]),
        "others": spread([one["others"] for one in of], digits=4)} for name, of in runs.items()}
    ratios = {name: {"time": ratio(figures, name, PLAIN, "seconds"), "memory": ratio(figures, name, PLAIN, "peak_mib")}
              for name in figures}
    return {"contenders": figures, "ratios": ratios, "bars": bars(figures)}


def ratio(figures: Mapping[str, Mapping[str, Any]], one: str, other: str, key: str) -> float:
    """One contender's median over another's."""
    return round(figures[one][key]["median"] / figures[other][key]["median"], 3)


def bars(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is asked, what was measured, and whether that is enough; without what was not measured."""
    found = []
    for name, against, time, memory in (bar for bar in BARS if {*bar[:2]} <= figures.keys()):
        for what, key, most in (("time", "seconds", time), ("peak memory", "peak_mib", memory)):
            if most is not None:
                measured = ratio(figures, name, against, key)
                found.append({"what": f"{what} of {name} against {against}", "measured": measured,
                              "bar": f"<= {most}", "met": measured <= most})
    return found


def table(result: Mapping[str, Any]) -> list[str]:
    """The contenders as Markdown."""
    lines = ["| contender | seconds (lowest-highest) | peak MiB | paid once, s | time x | memory x |",
             "|---|---:|---:|---:|---:|---:|"]
    for name, of in result["contenders"].items():
        took, ratios = of["seconds"], result["ratios"][name]
        lines.append(f"| {name} | {took['median']:.1f} ({took['lowest']:.1f}-{took['highest']:.1f}) | "
                     f"{of['peak_mib']['median']:.0f} | {of['once_seconds']['median']:.1f} | {ratios['time']:.2f} | "
                     f"{ratios['memory']:.2f} |")
    return lines


if __name__ == "__main__":
    import run as bench

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--newer", action="store_true", help="plain fine-tuning and the newer defenses alone")
    parser.add_argument("--rows", type=int, default=JOB["rows"], help="rows to train on; other numbers are not kept")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="runs of each contender")
    asked = parser.parse_args()
    if asked.rows < FEWEST or asked.repetitions < 1:
        parser.error(f"at least {FEWEST} rows and 1 repetition")
    bench.one(sys.modules[__name__], NEWER if asked.newer else tuple(CONTENDERS), asked.rows, asked.repetitions)
