"""Training in subprocesses: for a library that would change this process, or over several GPUs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from emlib.core import gpus, paths
from emlib.core.errors import EmlibError, ProfileError
from emlib.core.files import end_of, write_text
from emlib.core.temporary import temporary_folder
from emlib.data.chat import Encoded
from emlib.training.job import ERROR, JOB, READY, ROWS, SUMMARY, Job, write_rows

OUTPUT = "worker.log"
PATIENCE = 0.1  # seconds between two looks at the processes


class BackendUnavailable(EmlibError):
    """The other library could not load the model, or loaded a different one: nothing was trained."""


def train_in_subprocess(job: Job, rows: Sequence[Encoded], folder: Path, processes: int = 1) -> dict[str, Any]:
    """Train in one subprocess or in several, each with a GPU where there are any; return the summary and the device.

    `folder` keeps log and checkpoints, from which a run begun there resumes; at the end it has a folder `adapter`.

    Raises:
        BackendUnavailable: a check before the first step failed.
        EmlibError: training stopped; the log is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in (READY, SUMMARY, ERROR):  # of an earlier attempt
        (folder / left).unlink(missing_ok=True)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    write_text(folder / JOB, job.model_dump_json())
    write_rows(folder / ROWS, rows)
    failed = _first_that_fails(folder, _devices(processes))
    if failed is None:
        return dict(json.loads((folder / SUMMARY).read_text(encoding="utf-8")))
    error = EmlibError if (folder / READY).is_file() else BackendUnavailable
    raise error(_reason(folder, *failed))


def _devices(processes: int) -> list[dict[str, str]]:
    """Return the environment variable of each process's GPU; none for a single process or without a GPU."""
    names = gpus.devices()
    if processes == 1 or not names:
        return [{}] * processes
    if len(names) < processes:
        raise ProfileError(f"job.gpus is {processes}, and this process may use {len(names)} GPUs. Lower job.gpus.")
    return [{gpus.VISIBLE: name} for name in names[:processes]]


def _first_that_fails(folder: Path, devices: Sequence[dict[str, str]]) -> tuple[int, Path] | None:
    """Run one process per device; return code and output of the first that fails, after ending the others, or None."""
    with ExitStack() as stack:
        meeting = stack.enter_context(temporary_folder()) / "meeting"
        outputs = [folder / (f"{rank}.{OUTPUT}" if rank else OUTPUT) for rank in range(len(devices))]
        workers = [stack.enter_context(_worker(
            [str(folder.resolve()), str(rank), str(len(devices)), str(meeting)], device, outputs[rank]))
            for rank, device in enumerate(devices)]
        while True:
            codes = [worker.poll() for worker in workers]
            for code, output in zip(codes, outputs, strict=True):
                if code:
                    return code, output
            if all(code == 0 for code in codes):
                return None
            time.sleep(PATIENCE)


@contextmanager
def _worker(arguments: Sequence[str], device: dict[str, str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as out, subprocess.Popen(
            [sys.executable, "-m", "emlib.training.worker", *arguments], cwd=paths.ROOT, stdout=out,
            stderr=subprocess.STDOUT, env=os.environ | {"EMLIB_HEADLESS": "1"} | paths.variables() | device) as worker:
        try:
            yield worker
        finally:
            worker.kill()  # no effect on one that has ended


def _reason(folder: Path, code: int, output: Path) -> str:
    if (folder / ERROR).is_file():
        return str(json.loads((folder / ERROR).read_text(encoding="utf-8")))
    return f"Training in a subprocess ended with code {code}. {end_of(output)}"
