"""GPUs: each job has one of its own, a killed job's is free at once, and the names mean the same in every job."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emlib.core import gpus, paths
from emlib.core.errors import EmlibError

CLAIM = """
import sys
from emlib.core.gpus import claimed, devices
print("asking", flush=True)
with claimed(devices(), int(sys.argv[1])) as taken:
    print(*taken, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def job(locks: Path, visible: str = "0,1", count: int = 1) -> Iterator[subprocess.Popen[str]]:
    """A process that asks for devices, names them, and keeps them until it is sent a line."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible, "PYTHONPATH": str(paths.ROOT),
                                "EMLIB_GPU_LOCKS": str(locks)}
    with subprocess.Popen([sys.executable, "-c", CLAIM, str(count)], text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env=environment) as process:
        assert said(process) == "asking"
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_jobs_have_a_device_each_and_a_killed_jobs_goes_to_the_one_that_waits(tmp_path: Path) -> None:
    with job(tmp_path) as first, job(tmp_path) as second:
        held, other = said(first), said(second)
        assert {held, other} == {"0", "1"}
        with job(tmp_path) as third:
            assert third.poll() is None
            first.kill()
            assert said(third) == held
            assert second.poll() is None


def test_a_device_is_free_after_its_job(tmp_path: Path) -> None:
    for _ in range(2):
        with job(tmp_path, "7") as process:
            assert said(process) == "7"
            process.communicate("done\n")
            assert process.returncode == 0


def test_who_wants_two_holds_none_while_it_waits(tmp_path: Path) -> None:
    with job(tmp_path) as first, job(tmp_path, "0,1,2", 2) as two:
        held = {said(first), *said(two).split()}
        assert held == {"0", "1", "2"}
        with job(tmp_path, "0,1,2", 2) as waits:
            first.communicate("done\n")  # one is free now, which is not enough
            with job(tmp_path, "0,1,2") as single:
                assert said(single) in held
                two.communicate("done\n")
                assert len(said(waits).split()) == 2


def test_more_than_there_are_is_told_at_once() -> None:
    with pytest.raises(EmlibError, match=r"takes 3 GPUs \(job\.gpus\), but only 2 can be used"), gpus.claimed(
            ["0", "1"], 3):
        pass


def test_without_a_device_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_GPU_LOCKS", str(tmp_path / "locks"))
    with gpus.claimed([]) as taken:
        assert taken == []
    assert not (tmp_path / "locks").exists()


SMI = """#!/bin/sh
echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-0)'
echo '  MIG 1g.10gb     Device  0: (UUID: MIG-cccc)'
echo 'GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-1)'
"""


@pytest.mark.parametrize(("visible", "expected"), [
    (None, ["GPU-aaaa-0", "GPU-bbbb-1"]), ("1", ["GPU-bbbb-1"]), ("1,0", ["GPU-bbbb-1", "GPU-aaaa-0"]), ("", []),
    ("GPU-bbbb-1", ["GPU-bbbb-1"]), ("MIG-cccc", ["MIG-cccc"]), ("5", ["5"])])
def test_devices_have_the_drivers_names_wherever_a_job_counts_from(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.devices() == expected


def test_the_locks_are_open_to_all_users_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_GPU_LOCKS", str(tmp_path / "locks"))
    with gpus.claimed(["GPU-aaaa-0"]) as taken:
        assert taken == ["GPU-aaaa-0"]
        (lock,) = (tmp_path / "locks").iterdir()
    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o777
    assert lock.stat().st_mode & 0o666 == 0o666
