"""One or more GPUs for each job: lists the machine's devices and reserves those that no other job uses.

A job holds a lock file on each of its devices. The operating system releases the lock when the process ends or is
killed, so no device stays reserved. The locks are on a local disk: machines share no devices, and locks on network file
systems are unreliable.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from emlib.core.errors import EmlibError

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOCKS = "EMLIB_GPU_LOCKS"  # overrides the folder of the locks, by default one in the system's temporary folder
RETRY_SECONDS = 0.5  # between two attempts to lock devices


def devices() -> list[str]:
    """List the devices that this process may use, by names that CUDA_VISIBLE_DEVICES accepts; empty without a GPU.

    A device is named by its UUID, which is the same in every job, unlike its number. If CUDA_VISIBLE_DEVICES is set, it
    decides: `2,3`, or UUIDs, or an empty value for no GPU.
    """
    given = os.environ.get(VISIBLE)
    present = _uuids()
    if given is None:
        return present
    names = [name.strip() for name in given.split(",") if name.strip()]
    return [present[int(name)] if name.isdigit() and int(name) < len(present) else name for name in names]


@contextmanager
def claimed(names: Sequence[str], count: int = 1) -> Iterator[list[str]]:
    """Reserve `count` of these devices for this process until the end; yield an empty list if `names` is empty.

    Waits until enough are free, and holds none meanwhile, so that two jobs never wait for each other. A child process
    that uses a device must end before this process does, or at once if this process is killed: a notebook's kernel
    checks for that every second.

    Raises:
        EmlibError: the machine has fewer devices than `count`.
    """
    if not names or not count:
        yield []
        return
    if len(names) < count:
        raise EmlibError(f"A job of this profile takes {count} GPUs (job.gpus), but only {len(names)} can be used. "
                         "Lower job.gpus.")
    locks = Path(os.environ.get(LOCKS) or Path(tempfile.gettempdir()) / "emlib-gpus")
    if not locks.is_dir():
        locks.mkdir(parents=True, exist_ok=True)
        locks.chmod(0o777)  # of all users of the machine, so that their jobs respect the locks
    while True:
        with ExitStack() as held:
            taken: list[str] = []
            for name in names:
                path = locks / (re.sub(r"[^\w-]", "_", name) + ".lock")
                lock = FileLock(path, timeout=0, mode=0o666)
                if len(taken) < count:
                    with suppress(Timeout):
                        held.enter_context(lock)
                        taken.append(name)
            if len(taken) == count:
                yield taken
                return
        time.sleep(RETRY_SECONDS)


def _uuids() -> list[str]:
    """Return the UUIDs that the driver lists, in its order: `GPU 0: NVIDIA H100 (UUID: GPU-5f1c...)`."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True, text=True).stdout
    return re.findall(r"^GPU \d+:.*\(UUID: (GPU-[\w-]+)\)", listed, re.MULTILINE)
