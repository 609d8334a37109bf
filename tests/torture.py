"""Kills `make reproduce` at moments spread over its own course, and compares its results with an undisturbed run's.

    make torture                       # 30 kills of the tiny study, two jobs at once
    python -m tests.torture tiny 8     # 8 kills

Exits with 1 if a result or an artefact differs in more than seconds, and names it. Takes several times as long as the
study, so `make test` does not run it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from emlib.core import paths
from emlib.core.seeds import generator
from emlib.store.artefacts import Store
from tests.make.test_equal_bytes import timeless

LONGEST_WAIT = 8.0  # seconds from a kill's place in the run to the kill itself
RESULTS = ("results.csv", "benign.csv", "grpo.csv", "tables/triggers.csv", "tables/trajectory.csv", "tables/sets.csv",
           "tables/persistence.csv")


def main(profile: str, kills: int) -> int:
    """Run the study once, and once with kills; print what differs, and return the exit code."""
    with tempfile.TemporaryDirectory(prefix="torture") as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        begun = time.monotonic()
        finish(profile, whole)
        print(f"undisturbed: {progress(whole)} artefacts and notebooks in {time.monotonic() - begun:.0f} s", flush=True)
        waits = generator(0, "torture").uniform(0, LONGEST_WAIT, kills)
        for number, (wait, place) in enumerate(zip(waits, np.linspace(0, progress(whole), kills + 1), strict=False), 1):
            print(f"kill {number} of {kills}: {kill_once(profile, killed, place, wait)}", flush=True)
        finish(profile, killed)
        different = list(differences(profile, whole, killed))
    print("\n".join(different) or f"{kills} kills: every result and artefact is the same but for seconds")
    return bool(different)


def start(profile: str, runs: Path) -> subprocess.Popen[bytes]:
    """Start `make reproduce` in a process group of its own; what it says goes to a file beside the folder of runs."""
    runs.mkdir(exist_ok=True)
    with runs.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            ["make", "reproduce", f"PROFILE={profile}", f"EMLIB_RUNS_DIR={runs}", "JOBS=2"], cwd=paths.ROOT,
            start_new_session=True, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"EMLIB_HEADLESS": "1"})


def finish(profile: str, runs: Path) -> None:
    """Run the study to its end."""
    code = start(profile, runs).wait()
    if code:
        said = runs.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
        sys.exit(f"`make reproduce PROFILE={profile}` ended with {code}:\n{said[-3000:]}")


def kill_once(profile: str, runs: Path, place: float, wait: float) -> str:
    """Start the study and kill its whole group some seconds after it has left so much; say where that was."""
    with start(profile, runs) as process:
        while process.poll() is None and progress(runs) < place:
            time.sleep(0.05)
        end = time.monotonic() + wait
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        ended = process.poll() is not None
        if not ended:
            os.killpg(process.pid, signal.SIGKILL)
    return f"it had ended, with {progress(runs)}" if ended else f"at {progress(runs)}"


def progress(runs: Path) -> int:
    """Count the finished artefacts and notebooks."""
    return sum(1 for pattern in ("store/*/*/manifest.json", "*/notebooks/*.ipynb") for _ in runs.glob(pattern))


def differences(profile: str, whole: Path, killed: Path) -> Iterator[str]:
    """Yield what differs between two folders of runs in more than seconds."""
    for name in RESULTS:
        one, other = (runs / profile / name for runs in (whole, killed))
        if one.is_file() != other.is_file():
            yield f"{name}: only one of the two runs has it"
        elif one.is_file():
            frames = [pd.read_csv(path) for path in (one, other)]
            frames = [frame[[column for column in frame if "second" not in column]] for frame in frames]
            if not frames[0].equals(frames[1]):
                yield f"{name}: other values"
    made, again = ({(each.stage, each.key): each.folder for each in Store(runs / "store").all()}
                   for runs in (whole, killed))
    yield from (f"{stage}/{key}: only one of the two runs has it" for stage, key in sorted(made.keys() ^ again.keys()))
    for stage, key in sorted(made.keys() & again.keys()):
        folders = made[stage, key], again[stage, key]
        names = {path.name for folder in folders for path in folder.iterdir()}
        yield from (f"{stage}/{key}/{name}: other content" for name in sorted(names)
                    if not same(folders[0] / name, folders[1] / name))


def same(one: Path, other: Path) -> bool:
    """Whether both files exist and are equal but for seconds."""
    return one.is_file() and other.is_file() and timeless(one) == timeless(other)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
