"""A process is recognised by its mark, also where `/proc` hides those of other users (mounted with `hidepid`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emlib.core import process

READ = Path.read_text


@pytest.fixture
def _hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells of other processes, as `hidepid=2` has it for those of other users."""
    def read(path: Path, *given: Any, **named: Any) -> str:
        if path.name == "stat" and path.parent.name not in ("self", str(os.getpid())):
            raise FileNotFoundError(path)
        return READ(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", read)


def mark(pid: int, start: str) -> str:
    machine, boot, *_ = process.new_mark().split("-")
    return f"{machine}-{boot}-{pid}-{start}-000000"


def test_a_mark_is_of_a_process_that_runs_until_it_ends() -> None:
    assert not process.has_ended(process.new_mark())
    assert process.has_ended(mark(os.getpid(), "1"))  # another process with the same id, long ago
    assert not process.has_ended("elsewhere")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        start = process._start(child.pid)
        assert start is not None
        assert not process.has_ended(mark(child.pid, start))
        child.kill()
    assert process.has_ended(mark(child.pid, start))


@pytest.mark.usefixtures("_hidden")
def test_a_hidden_process_that_runs_has_not_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not process.has_ended(mark(child.pid, "77"))
        assert not process.has_ended(mark(1, "5"))  # of another user, unless this is root's
        child.kill()
    assert process.has_ended(mark(child.pid, "77"))
    assert process.has_ended(mark(10**30, "77"))  # no process can have this id
