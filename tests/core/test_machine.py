"""The flags of a processor decide whether bfloat16 is fast, and the list of mounts which paths are on shared disks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emlib.core import machine

MOUNTS = r"""/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/local xfs rw 0 0
lustre /scratch\040space lustre rw,flock 0 0
tmpfs /tmp tmpfs rw 0 0
"""
INTEL = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu sse2 {} amx_tile\n\nprocessor\t: 1\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {} sve\n"


@pytest.mark.parametrize(("text", "flag", "fast"), [
    (INTEL, "amx_bf16", True), (INTEL, "avx512_bf16", True), (INTEL, "avx512_vnni", False),
    (ARM, "bf16", True), (ARM, "i8mm", False), ("{}", "", False)])
def test_bfloat16_is_fast_where_the_processor_has_products_in_it(tmp_path, text, flag, fast):
    path = tmp_path / "cpuinfo"
    path.write_text(text.format(flag))
    assert machine.computes_bfloat16(path) is fast


def test_a_system_that_tells_nothing_counts_as_one_without(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.platform, "system", lambda: "Windows")
    assert machine.computes_bfloat16(tmp_path / "missing") is False


@pytest.mark.parametrize(("path", "shared"), [
    ("/var/runs", False), ("/home/me/runs", True), ("/home/local/runs", False), ("/homely", False),
    ("/scratch space/runs", True), ("/", False)])
def test_the_nearest_mount_tells(path: str, shared: bool) -> None:
    assert machine.is_shared(Path(path), MOUNTS) is shared


def test_this_machines_own_list_is_read(tmp_path: Path) -> None:
    listed = Path("/proc/self/mounts").read_text(encoding="utf-8")
    assert machine.is_shared(tmp_path) is machine.is_shared(tmp_path, listed)


@pytest.mark.parametrize(("lines", "path", "shared"), [
    ("systemd-1 /shared autofs rw 0 0\nserver:/x /shared nfs4 rw 0 0", "/shared/runs", True),
    ("server:/x /shared nfs4 rw 0 0\n/dev/sdb1 /shared xfs rw 0 0", "/shared/runs", False),
    ("ceph-fuse /shared fuse.ceph-fuse rw 0 0", "/shared/runs", True),
    ("weka /shared wekafs rw 0 0", "/shared/runs", True),
    ("fuse-overlayfs /shared fuse.fuse-overlayfs rw 0 0", "/shared/runs", False),
    ("host /shared virtiofs rw 0 0", "/shared/runs", True)])
def test_of_two_mounts_at_one_place_the_later_one_is_seen(lines: str, path: str, shared: bool) -> None:
    assert machine.is_shared(Path(path), f"/dev/sda1 / ext4 rw 0 0\n{lines}\n") is shared


@pytest.mark.parametrize(("files", "most"), [
    ({}, None), ({"cpu.max": "max 100000\n"}, None), ({"cpu.max": "150000 100000\n"}, 1),
    ({"cpu.max": "50000 100000\n"}, 1), ({"cpu.max": "99900000 100000\n"}, None),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1)])
def test_a_containers_quota_limits_the_processors(files: dict[str, str], most: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cpus(tmp_path) == (most or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("environment", "openmp", "mkl"), [
    ({}, "5", "5"), ({"SLURM_CPUS_PER_TASK": "4"}, "4", "4"), ({"NSLOTS": "4"}, "4", "4"),
    ({"SLURM_CPUS_PER_TASK": "4", "OMP_NUM_THREADS": "3"}, "3", "3"),
    ({"OMP_NUM_THREADS": "", "MKL_NUM_THREADS": "2"}, "5", "2")])
def test_what_the_user_or_a_scheduler_sets_is_the_number_of_threads_or_what_the_job_is_bound_to(
        environment: dict[str, str], openmp: str, mkl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpus", lambda: 5)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    found = machine.threads(environment)
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == (openmp, mkl)


def test_a_job_that_nothing_limits_does_not_take_the_whole_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may run beside it, as with a Snakemake profile of one's own: Snakemake's one thread stays."""
    monkeypatch.setattr(machine, "cpus", lambda: 64)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert machine.threads({}) == {}
