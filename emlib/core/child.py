"""A program of another environment as a child process, which ends with the study's process, even if that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

KEEPER = Path(__file__).with_name("keeper.py")
OURS = ("PYTHONPATH", "VIRTUAL_ENV")  # variables of this environment, which another one must not see


@contextmanager
def child(command: Sequence[str | Path], environment: Mapping[str, str], out: IO[bytes] | None = None,
          folder: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program inside the context, and end it at the end with all processes that it started.

    Args:
        command: the program and its arguments.
        environment: its environment variables; `OURS` are removed.
        out: where its output and its errors go; None for where this process's go.
        folder: its working folder; None for this process's.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", str(KEEPER), *map(str, command)], stdout=out, stderr=None if out is None else
        subprocess.STDOUT, start_new_session=True, cwd=folder,
        env={name: value for name, value in environment.items() if name not in OURS})
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
