"""Sockets get paths that the system takes, also where TMPDIR is long."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from emlib.core.errors import EmlibError
from emlib.core.temporary import LONGEST_SOCKET, socket_folder


def test_a_long_tmpdir_is_passed_over_and_a_short_one_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    long = tmp_path / ("x" * (105 - len(str(tmp_path)) - 1))
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    name = "/emlib-12345678/kernel-5"
    with tempfile.TemporaryDirectory(dir=socket_folder(len(name))) as folder, socket.socket(socket.AF_UNIX) as one:
        one.bind(f"{folder}/kernel-5")  # raises where the path is too long
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert socket_folder(len(name)) == Path("/tmp")
    assert socket_folder(LONGEST_SOCKET - len("/tmp")) == Path("/tmp")


def test_where_there_is_no_short_folder_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with pytest.raises(EmlibError, match="Set TMPDIR to a folder whose path has at most 2 bytes"):
        socket_folder(105, others=("/not/there",))
