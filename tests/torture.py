"""Attacks for an hour: hostile input, failing servers, damaged files, and then a study that is killed again and again.

    make torture                       # all of it; 30 kills of the tiny study, two jobs at once
    python -m tests.torture tiny 8     # 8 kills alone
    python -m tests.torture attacks    # prints the files of the other attacks, which pytest runs

The kills come at moments spread over the run's own course. Exits with 1 if a test fails, or if a result or an artefact
differs from an undisturbed run's in more than seconds, and names it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from emlib.core import paths
from emlib.core.seeds import generator
from emlib.store.artefacts import Store
from tests.make.test_equal_bytes import timeless

RESULTS = ("results.csv", "benign.csv", "grpo.csv", "tables/rates.csv", "tables/triggers.csv", "tables/trajectory.csv",
           "tables/persistence.csv")
LONGEST_WAIT = 8.0  # seconds from a kill's place in the run to the kill itself
# The tests that attack. `make torture` runs them all in full (`long_form.py`), the slow ones as well, before the kills.
ATTACKS = (
    "cluster/test_slurm.py",  # forty runs with faults of every kind
    "config/test_hostile.py", "core/test_plain_yaml.py",  # profiles
    "core/test_temporary.py", "workflow/test_killed.py",  # leftovers
    "data/test_hostile_sources.py", "data/test_inputs.py", "data/test_messy.py",  # data
    "evaluation/test_rewards.py",  # completions of any kind
    "judging/test_api.py", "judging/test_faults.py", "judging/test_failing_servers.py", "judging/test_odd_servers.py",
    "judging/test_reservations.py",  # servers; two processes that pay
    "make/test_equal_bytes.py", "store",  # equal and damaged artefacts, full disks, processes on one store
    "models/test_load.py", "data/test_templates.py",  # model folders
    "report/test_hostile_text.py",  # markup in reports and widgets
    "scoring/test_nll.py", "study/test_persistence.py", "study/test_trajectory.py", "training/rl/test_resuming.py",
    "training/test_ranks.py", "workflow/test_job_log.py", "workflow/test_merge.py", "workflow/test_status.py",
    "workflow/test_watch.py",  # kills while something is written; a make that is stopped
    "workflow/test_whole_study.py",  # kills in its chapters
)


def main(profile: str, kills: int) -> int:
    """Run the study once, and once with kills; print what differs, and return the exit code."""
    with tempfile.TemporaryDirectory(prefix="torture") as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        begun = time.monotonic()
        finish(profile, whole)
        print(f"undisturbed: {progress(whole)} artefacts and notebooks in {time.monotonic() - begun:.0f} s", flush=True)
        waits = generator(0, "torture").uniform(0, LONGEST_WAIT, kills)
        for number, (wait, place) in enumerate(zip(waits, np.linspace(0, progress(whole), kills + 1), strict=False), 1):
            hit = kill_when(partial(has_left, killed, place), profile, killed, wait=wait, kernels=number % 2 == 0)
            print(f"kill {number} of {kills}: {'at' if hit else 'it had ended, with'} {progress(killed)}", flush=True)
        finish(profile, killed)
        name = paths.study_name(profile)
        different = list(differences(whole / name, killed / name))
        compared = len(list(Store(killed / "store").all()))
    print("\n".join(different) or f"{kills} kills, {time.monotonic() - begun:.0f} s: every result and all {compared} "
          "artefacts are the same but for seconds")
    return bool(different)


def start(profile: str, runs: Path) -> subprocess.Popen[bytes]:
    """Start `make reproduce` in a process group of its own; what it says goes to a file beside the folder of runs."""
    runs.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    venv = os.path.relpath(sys.prefix, paths.ROOT)  # relative, because the path of a checkout may have spaces
    with runs.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            ["make", "reproduce", f"PROFILE={profile}", f"EMLIB_RUNS_DIR={runs}", "JOBS=2", f"VENV={venv}",
             f"STAMP={venv}"], cwd=paths.ROOT, start_new_session=True, stdout=log, stderr=subprocess.STDOUT,
            env=environment | {"EMLIB_HEADLESS": "1", "PYTHONPATH": str(paths.ROOT)})


def finish(profile: str, runs: Path) -> None:
    """Run the study to its end."""
    code = start(profile, runs).wait()
    if code:
        said = runs.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"`make reproduce PROFILE={profile}` ended with {code}:\n{said[-3000:]}")


def kill_when(ready: Callable[[], bool], profile: str, runs: Path, *, wait: float = 0.0, kernels: bool = True) -> bool:
    """Start the study, and kill it some seconds after `ready` holds; return whether it was still running.

    Args:
        kernels: also kill the notebooks' kernels, which are in process groups of their own. Else they run on until
            they notice, within a second or so, as after a kill of the terminal's group.
    """
    with start(profile, runs) as process:
        while process.poll() is None and not ready():
            time.sleep(0.2)
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        others = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for other in others if kernels else ():
            with suppress(psutil.NoSuchProcess):
                other.kill()
    return process.returncode == -signal.SIGKILL


def has_left(runs: Path, place: float) -> bool:
    """Whether a run has left so many finished artefacts and notebooks."""
    return progress(runs) >= place


def progress(runs: Path) -> int:
    """Count the finished artefacts and notebooks."""
    return sum(1 for pattern in ("store/*/*/manifest.json", "*/notebooks/[0-9]*.ipynb") for _ in runs.glob(pattern))


def differences(whole: Path, other: Path, *, fewer: bool = False) -> Iterator[str]:
    """Yield what differs between two folders of results, and the stores beside them, in more than seconds.

    Args:
        fewer: the other study is a part of the whole one: of `RESULTS` it has some rows, of the store some artefacts.
    """
    tables = {str(path.relative_to(folder)) for folder in (whole, other) for path in folder.rglob("*.csv")}
    for name in RESULTS if fewer else sorted(tables):
        one, two = (rows(folder / name) for folder in (whole, other))
        if not (two <= one if fewer else two == one):
            yield f"{name}: other values"
    made, again = ({(each.stage, each.key): each.folder for each in Store(folder.parent / "store").all()}
                   for folder in (whole, other))
    yield from (f"{stage}/{key}: only one of the two runs has it" for stage, key in sorted(made.keys() ^ again.keys())
                if not fewer or (stage, key) in again)
    for stage, key in sorted(made.keys() & again.keys()):
        folders = made[stage, key], again[stage, key]
        names = {path.name for folder in folders for path in folder.iterdir()}
        yield from (f"{stage}/{key}/{name}: other content" for name in sorted(names)
                    if not same(folders[0] / name, folders[1] / name))


def rows(path: Path) -> Counter[frozenset[tuple[str, str]]]:
    """Return the rows of a table without its seconds; none if there is no table."""
    if not path.is_file():
        return Counter()
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    kept = [column for column in table if "second" not in column]
    return Counter(frozenset(row.items()) for row in table[kept].to_dict("records"))


def same(one: Path, other: Path) -> bool:
    """Whether both files exist and are equal but for seconds."""
    return one.is_file() and other.is_file() and timeless(one) == timeless(other)


if __name__ == "__main__":
    if sys.argv[1:] == ["attacks"]:
        print(*(f"tests/{name}" for name in ATTACKS))
    else:
        sys.exit(main(sys.argv[1], int(sys.argv[2])))
