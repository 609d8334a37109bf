"""The flags of a processor decide whether bfloat16 is fast, and the list of mounts which paths are on shared disks."""

from __future__ import annotations

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
