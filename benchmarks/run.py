"""Run every benchmark, print what was measured beside its bar, and keep it in results/<name>.json.

A missed bar is a result and no error: the table says MISSED, and the exit code stays 0.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpo_cpu
import machine
import training_cpu

BENCHMARKS = (training_cpu, grpo_cpu)
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """One after the other; each result is written as soon as it is whole."""
    for benchmark in BENCHMARKS:
        say(f"{benchmark.NAME}: {(benchmark.__doc__ or '').splitlines()[0]}")
        measured = benchmark.measure(say)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        result = {"benchmark": benchmark.NAME, "date": when, "device": machine.device()} | measured
        path = RESULTS / f"{benchmark.NAME}.json"
        keep(path, result)
        print("\n".join(table(result)))
        print(f"Written to {path.relative_to(RESULTS.parents[1])}.")


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, path)


def table(result: dict[str, Any]) -> list[str]:
    """Contenders first, where there are some, and bars below, as Markdown."""
    lines = contenders(result) if "contenders" in result else []
    lines += ["", "| bar | asked | measured | |", "|---|---:|---:|---|"]
    return lines + [f"| {bar['what']} | {bar['bar']} | {bar['measured']:.4g} | {'met' if bar['met'] else 'MISSED'} |"
                    for bar in result["bars"]]


def contenders(result: dict[str, Any]) -> list[str]:
    """Speed, memory and losses, a row a contender."""
    lines = ["| contender | tokens/s (lowest-highest) | peak MiB | first loss | mean loss | speed x | memory x |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    for name, of in result["contenders"].items():
        pace, ratio = of["tokens_per_second"], result["ratios"].get(name)
        times = f"{ratio['speed']:.2f} | {ratio['memory']:.2f}" if ratio else " | "
        lines.append(f"| {name} | {pace['median']:.0f} ({pace['lowest']:.0f}-{pace['highest']:.0f}) | "
                     f"{of['peak_mib']['median']:.0f} | {of['first_loss']:.4f} | {of['mean_loss']:.4f} | {times} |")
    return lines


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
