"""A GPU for each job, or several: which there are, and taking what no other job on this machine has.

A job holds a lock on its device. The system lets go of the lock when the process ends, also when it is killed, so that
no device stays taken. The locks lie on the machine's own disk: two machines have no device in common, and the
locks of a network file system are not always to be trusted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from emlib.core.errors import EmlibError

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOCKS = "EMLIB_GPU_LOCKS"  # the folder of the locks, instead of one in the machine's folder for temporary files
PATIENCE = 0.5  # seconds until the devices are tried again


def devices() -> list[str]:
    """The devices that this process may use, by the names that CUDA_VISIBLE_DEVICES takes; empty without a GPU.

    A device has its UUID here, which means the same in every job; its number may be counted from the first that a job
    was given. Where CUDA_VISIBLE_DEVICES is set it has the last word: `2,3`, or UUIDs, or nothing for no GPU.
    """
    given = os.environ.get(VISIBLE)
    there = _uuids()
    if given is None:
        return there
    names = [name.strip() for name in given.split(",") if name.strip()]
    return [there[int(name)] if name.isdigit() and int(name) < len(there) else name for name in names]


@contextmanager
def claimed(names: Sequence[str], count: int = 1, folder: Path | None = None) -> Iterator[list[str]]:
    """So many of these devices, which are this process's own until the end; none where there are none to have.

    It waits where too few are free, and holds none meanwhile: two jobs would wait for each other's. What uses a device
    has to end before this process does, or, if this process is killed, at once: a notebook's kernel watches for that,
    within a second.

    Raises:
        EmlibError: there are fewer in all.
    """
    if not names or not count:
        yield []
        return
    if len(names) < count:
        raise EmlibError(f"A job of this profile takes {count} GPUs (job.gpus), and there are {len(names)}. Lower it.")
    locks = folder or locks_folder()
    with _when_free({name: locks / (re.sub(r"[^\w-]", "_", name) + ".lock") for name in names}, count) as taken:
        yield taken


@contextmanager
def _when_free(files: Mapping[str, Path], count: int) -> Iterator[list[str]]:
    while True:
        with ExitStack() as held:
            taken: list[str] = []
            for name, path in files.items():
                if len(taken) < count and _locked(path, held):
                    taken.append(name)
            if len(taken) == count:
                yield taken
                return
        time.sleep(PATIENCE)


def _locked(path: Path, held: ExitStack) -> bool:
    """Whether nobody had the lock; `held` has it then."""
    lock = FileLock(path, mode=0o666)  # so that two people's jobs on one machine see each other
    try:
        held.enter_context(lock.acquire(blocking=False))
    except Timeout:
        return False
    return True


def locks_folder() -> Path:
    """Where the locks of this machine's devices lie, open to all its users."""
    folder = Path(os.environ.get(LOCKS) or Path(tempfile.gettempdir()) / "emlib-gpus")
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
    return folder


def _uuids() -> list[str]:
    """What the driver lists, in its order: `GPU 0: NVIDIA H100 (UUID: GPU-5f1c...)`."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True, text=True).stdout
    return re.findall(r"^GPU \d+:.*\(UUID: (GPU-[\w-]+)\)", listed, re.MULTILINE)
