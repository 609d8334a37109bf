"""A program of another environment as a child process, which ends with the study's process, even if that is killed.

A vLLM server has child processes, which outlive a killed study and would hold the GPU's memory. So a keeper runs the
program, `python -I child.py PROGRAM ARGUMENT...`: it leads the process group that contains all of them. This file
imports only the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

OURS = ("PYTHONPATH", "VIRTUAL_ENV")  # variables of this environment, which another one must not see
PATIENCE = 20  # seconds until processes that do not end by themselves are killed


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
        [sys.executable, "-I", __file__, *map(str, command)], stdout=out, stderr=None if out is None else
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


def keep(command: Sequence[str]) -> int:
    """Run a program, end it when the process that started this one ends, and return its exit code."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: None)  # the signal goes to the whole group; this process waits for it
    server = subprocess.Popen(command)
    while os.getppid() == parent:
        with suppress(subprocess.TimeoutExpired):
            return server.wait(1)
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(PATIENCE)
    os.killpg(0, signal.SIGKILL)
    return 1


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
