"""Runs a program and ends it when the process that started this one ends: `python keeper.py PROGRAM ARGUMENT...`.

A vLLM server has child processes, which outlive a killed study and would hold the GPU's memory. `emlib.core.child` runs
this file by its path; it imports only the standard library. It leads the process group that contains all of them.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress

PATIENCE = 20  # seconds until processes that do not end by themselves are killed


def main(command: list[str]) -> int:
    """Run the program and return its exit code."""
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
    sys.exit(main(sys.argv[1:]))
