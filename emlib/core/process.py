"""Marks by which a process is recognised later, to ask whether it still runs.

A mark is `<machine>-<boot>-<pid>-<start>-<random>`. The machine is a digest of the host's name and, in containers, of
the namespace of its process ids; the boot tells processes before a restart from those after it; the start tells a
process from a later one with the same id. Of a process on another machine nobody here knows whether it runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from functools import cache
from pathlib import Path

from emlib.core.digests import of_text

MARK = r"[0-9a-f]{6}-[0-9a-f]{6}-\d+-\d+-[0-9a-f]{6}"  # a regular expression
UNKNOWN = "0"  # the start of a process of which the system tells no more than that it runs


def new_mark() -> str:
    """Return a mark of this process, another one each time."""
    return f"{_machine()}-{_boot()}-{os.getpid()}-{_start(os.getpid())}-{secrets.token_hex(3)}"


def is_of_this_machine(mark: str) -> bool:
    """Return whether a mark is of a process on this machine."""
    return mark.startswith(f"{_machine()}-")


def has_ended(mark: str) -> bool:
    """Return whether a mark is of a process on this machine that no longer runs."""
    if not re.fullmatch(MARK, mark) or not is_of_this_machine(mark):
        return False
    _, boot, pid, start, _ = mark.split("-")
    return boot != _boot() or _start(int(pid)) not in (start, UNKNOWN)


@cache
def _machine() -> str:
    """Return a digest of the host's name and the namespace of its process ids, which two containers do not share."""
    with contextlib.suppress(OSError):
        return of_text(socket.gethostname() + str(Path("/proc/self/ns/pid").readlink()))[:6]
    return of_text(socket.gethostname())[:6]


@cache
def _boot() -> str:
    """Return a digest of the machine's last start; of nothing on systems that do not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return of_text(path.read_text(encoding="utf-8") if path.is_file() else "")[:6]


def _start(pid: int) -> str | None:
    """Return when a process started, in clock ticks since the boot, or `UNKNOWN`; None if it ended.

    A process that ended, and whose parent has not asked for its status yet, has ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        return UNKNOWN if _runs(pid) else None


def _runs(pid: int) -> bool:
    """Return whether there is a process with this id. `/proc` does not show those of other users everywhere."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
