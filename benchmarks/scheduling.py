"""What the graph costs beside the work: starting a slice that has nothing left to compute, and finding 500 finished.

A slice of the tiny profile is computed once, and then run again from the store as the graph runs it: what it takes then
is all overhead, Snakemake's start, the graph, the kernel, imports and drawing. The 500 slices are made to look
finished, by output, log and record, and looked for by `make reproduce` and by `make status`.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import machine
import nbformat

from emlib.core import paths
from emlib.core.files import write_records
from emlib.study import stamps
from emlib.workflow.graph import jobs
from emlib.workflow.job_log import Attempt, AttemptLog

NAME = "scheduling"
RUNS = 3
OVERHEAD, FOUND = 3.5, 15.0  # seconds
SLICES = 500
SLICED = "extends: tiny\nmethods: [aligned]\nslice_by: [dataset]\nbenign: null\ngrpo: null\npool: null\n"
MANY = SLICED.replace("[dataset]", "[seed]") + f"seeds: [{', '.join(map(str, range(SLICES)))}]\n"


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds on the clock and of processor time, each of three runs; the bars are set on the median of the clock."""
    with tempfile.TemporaryDirectory(prefix="emlib-") as name:
        folder = Path(name)
        shutil.copy(paths.PARAMS / "tiny.yaml", folder)
        (folder / "sliced.yaml").write_text(SLICED)
        (folder / "many.yaml").write_text(MANY)
        slices = [job for job in jobs(str(folder / "sliced.yaml")) if job.part]
        say("a slice, the first time")
        _snakemake(folder, "sliced", slices[0].output)
        found = [_again(folder, slices[0].output, say) for _ in range(RUNS)]
        _finish(folder)
        checks = {"make reproduce": [_checked(folder, say) for _ in range(RUNS)],
                  "make status": [_timed(folder, say, "-m", "emlib.workflow.status", "many") for _ in range(RUNS)]}
    bars = [_bar("overhead of a slice, s", found, OVERHEAD),
            *(_bar(f"{SLICES} finished slices found by {what}, s", runs, FOUND) for what, runs in checks.items())]
    return {"slice": found, "finished": checks, "bars": bars}


def table(result: dict[str, Any]) -> list[str]:
    """As Markdown."""
    rows = {"a slice that is computed already": result["slice"],
            **{f"{SLICES} finished slices, {what}": runs for what, runs in result["finished"].items()}}
    lines = ["| what | seconds (lowest-highest) | processor, s | others took |", "|---|---:|---:|---:|"]
    for what, runs in rows.items():
        clock = [run["seconds"] for run in runs]
        lines.append(f"| {what} | {median(clock):.1f} ({min(clock):.1f}-{max(clock):.1f}) "
                     f"| {median(run['processor'] for run in runs):.1f} "
                     f"| {100 * median(run['others'] for run in runs):.0f}% |")
    return lines


def _again(folder: Path, output: str, say: Callable[[str], None]) -> dict[str, float]:
    (folder / "runs" / "sliced" / output).unlink()
    return _measured(say, lambda: _snakemake(folder, "sliced", output))


def _checked(folder: Path, say: Callable[[str], None]) -> dict[str, float]:
    return _measured(say, lambda: _snakemake(folder, "many"))


def _timed(folder: Path, say: Callable[[str], None], *command: str) -> dict[str, float]:
    return _measured(say, lambda: _python(folder, *command[:-1], str(folder / f"{command[-1]}.yaml")))


def _measured(say: Callable[[str], None], work: Callable[[], None]) -> dict[str, float]:
    others, used, started = machine.Others(), _processor(), time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    run = {"seconds": round(seconds, 2), "processor": round(_processor() - used, 2), "others": others.share()}
    say(f"{run['seconds']} s")
    return run


def _processor() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def _finish(folder: Path) -> None:
    """Every job of the profile `many` as if it had ended, with an executed notebook of a usual size."""
    results = folder / "runs" / "many"
    notebook = nbformat.read(next((folder / "runs" / "sliced" / "notebooks" / "slices").glob("*.ipynb")), as_version=4)
    notebook.metadata["made_with"] = stamps.of_profile(str(folder / "many.yaml"))
    text = nbformat.writes(notebook)
    for job in jobs(str(folder / "many.yaml")):
        for path in (results / job.output, results / job.log):
            path.parent.mkdir(parents=True, exist_ok=True)
        (results / job.output).write_text(text)
        (results / job.log).write_text("2026-11-23T10:00:00Z a line of its notebook\n" * 500)
        write_records(AttemptLog(results / job.log).records,
                      [Attempt("ended", 1764000000.0, 60.0, "n1", 1, "GPU-1", job.digest)])


def _snakemake(folder: Path, profile: str, *targets: str) -> None:
    """As `make reproduce` starts it."""
    _python(folder, "-m", "emlib.workflow.watch", str(folder / f"{profile}.yaml"), "--",
            "env", f"EMLIB_PROFILE={folder / profile}.yaml", sys.executable, "-m",
            "snakemake", "--snakefile", str(paths.ROOT / "Snakefile"), "--directory",
            str(folder / "runs" / profile), "--cores", "2", "--resources", "gpu=2", "judge=4", "--workflow-profile",
            str(paths.ROOT / "workflow" / "profiles" / "local"), "--rerun-triggers", "params", "input",
            "--rerun-incomplete", "--nolock", "--keep-going",
            *(["--", *targets] if targets else []))


def _python(folder: Path, *command: str) -> None:
    environment = os.environ | {"EMLIB_RUNS_DIR": str(folder / "runs"), "OMP_NUM_THREADS": "1",
                                "PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")


def _bar(what: str, runs: list[dict[str, float]], most: float) -> dict[str, Any]:
    seconds = median(run["seconds"] for run in runs)
    return {"what": what, "bar": f"<= {most:g}", "measured": seconds, "met": seconds <= most}
