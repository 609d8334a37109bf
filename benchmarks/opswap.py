"""OpSwap: all four tiers as the paper has them, 10,000 examples each with their split, on one core."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import machine

from emlib.data import opswap
from emlib.data.opswap_grammar import TIERS

NAME = "opswap"
COUNT, RUNS, SECONDS = 10_000, 3, 10.0


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """CPU seconds of RUNS fresh processes, each with its imports done and its caches empty."""
    runs = []
    for number in range(1, RUNS + 1):
        done = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout))
        say(f"  run {number} of {RUNS}: {runs[-1]['cpu_seconds']:.2f} s")
    median = statistics.median(run["cpu_seconds"] for run in runs)
    return {
        "examples": COUNT * len(TIERS), "runs": runs,
        "bars": [{"what": "CPU seconds for 40,000 examples", "bar": f"< {SECONDS:g}", "measured": median,
                  "met": median < SECONDS}]}


def table(result: dict[str, Any]) -> list[str]:
    """What was measured, as Markdown."""
    return ["| run | CPU seconds | peak MiB |", "|---:|---:|---:|",
            *(f"| {number} | {run['cpu_seconds']:.2f} | {run['peak_mib']:.0f} |"
              for number, run in enumerate(result["runs"], 1))]


def main() -> None:
    """One run: print the CPU seconds it took."""
    started = time.process_time()
    for tier in TIERS:
        made = opswap.examples(tier, COUNT)
        assert len({example.prompt for example in made}) == COUNT
        opswap.held_out(tuple(example.expression for example in made), 0.1, seed=0)
    spent = time.process_time() - started
    print(json.dumps({"cpu_seconds": round(spent, 3), "peak_mib": machine.memory_mib("VmHWM")}))


if __name__ == "__main__":
    main()
