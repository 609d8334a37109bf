"""Training in a process of its own, for a library that would change this one: the job, the waiting, the outcome."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from emlib import paths
from emlib.data.chat import Encoded
from emlib.errors import EmlibError
from emlib.store import write_text
from emlib.training.job import ERROR, JOB, READY, ROWS, SUMMARY, VECTOR, Job, write_rows

OUTPUT = "worker.log"


class NeverBegan(EmlibError):
    """The other library could not load the model, or it was not the same one: nothing was trained."""


def train_apart(job: Job, rows: Sequence[Encoded], vector: Tensor | None, folder: Path) -> dict[str, Any]:
    """Train in a process of its own; `folder` keeps log and checkpoints, and then has a folder `adapter`.

    A run begun there goes on. What is returned is the summary, and the device.

    Raises:
        NeverBegan: before the first step something was not as it must be.
        EmlibError: training stopped; the log is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in (READY, SUMMARY, ERROR):  # of an attempt before
        (folder / left).unlink(missing_ok=True)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    write_text(folder / JOB, job.model_dump_json())
    write_rows(folder / ROWS, rows)
    if vector is not None:
        save_file({"vector": vector.cpu().contiguous()}, folder / VECTOR)
    with (folder / OUTPUT).open("wb") as out:
        ended = subprocess.run(
            [sys.executable, "-m", "emlib.training.worker", str(folder.resolve())], check=False, cwd=paths.ROOT,
            stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"EMLIB_HEADLESS": "1"})
    if ended.returncode == 0:
        return dict(json.loads((folder / SUMMARY).read_text(encoding="utf-8")))
    error = EmlibError if (folder / READY).is_file() else NeverBegan
    raise error(_reason(folder, ended.returncode))


def _reason(folder: Path, code: int) -> str:
    if (folder / ERROR).is_file():
        return str(json.loads((folder / ERROR).read_text(encoding="utf-8")))
    said = (folder / OUTPUT).read_text(errors="replace").splitlines()
    return f"Training in a process of its own ended with code {code}. The end of {folder / OUTPUT}:\n" + "\n".join(
        said[-15:])
