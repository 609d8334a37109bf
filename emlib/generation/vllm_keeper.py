"""Runs a program and ends it where the process that wanted it is gone: `python vllm_keeper.py PROGRAM ARGUMENT...`.

A vLLM server has processes of its own, which outlive a killed study and would hold the GPU's memory. This file is run
by its path, and imports nothing that is installed. It leads a process group, in which all of them are.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress

PATIENCE = 20  # seconds until what does not end by itself is killed


def main(told: list[str]) -> int:
    """Return the program's exit code."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: None)  # the whole group is told to end, and this is what waits for it
    server = subprocess.Popen(told)
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
