"""Run every benchmark, or those that are named, print what was measured beside its bar, and keep it in results/.

    python benchmarks/run.py judging_local      # or those that are named

A missed bar is a result and no error: the table says MISSED, and the exit code stays 0.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine

# Each is imported when it runs: `gpu` needs less than the others, and goes where they cannot.
BENCHMARKS = ("training_cpu", "defenses_cpu", "monitor_cpu", "judging_api", "judging_local", "scoring_cpu", "opswap",
              "grpo_cpu", "generation_cpu", "scheduling", "gpu")
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """One after the other; each result is written as soon as it is whole."""
    asked = sys.argv[1:] or BENCHMARKS
    unknown = [name for name in asked if name not in BENCHMARKS]
    if unknown:
        raise SystemExit(f"There is no benchmark {', '.join(unknown)}. There are: {', '.join(BENCHMARKS)}.")
    for name in asked:
        one(importlib.import_module(name))


def one(benchmark: Any, *arguments: Any) -> None:
    """Measure, print and keep. What was measured in a small form means nothing, and is not kept."""
    say(f"{benchmark.NAME}: {(benchmark.__doc__ or '').splitlines()[0]}")
    measured = benchmark.measure(say, *arguments)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    result = {"benchmark": benchmark.NAME, "date": when, "device": machine.device()} | measured
    print("\n".join([*benchmark.table(result), "", *bars(result)]))
    if measured.get("form") == "small":
        print("The small form, which shows that everything runs: not kept.")
        return
    path = RESULTS / f"{result['benchmark']}.json"
    keep(path, result)
    print(f"Written to {path.relative_to(RESULTS.parents[1])}.")


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, path)


def bars(result: dict[str, Any]) -> list[str]:
    """What was asked beside what was measured, as Markdown."""
    lines = ["| bar | asked | measured | |", "|---|---:|---:|---|"]
    return lines + [f"| {bar['what']} | {bar['bar']} | {bar['measured']:.4g} | {'met' if bar['met'] else 'MISSED'} |"
                    for bar in result["bars"]]


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
