"""Whether a path is on a network file system, and what the cache of scores makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from emlib.core.shared_filesystem import is_shared

MOUNTS = r"""/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/local xfs rw 0 0
lustre /scratch\040space lustre rw,flock 0 0
tmpfs /tmp tmpfs rw 0 0
"""


@pytest.mark.parametrize(("path", "shared"), [
    ("/var/runs", False), ("/home/me/runs", True), ("/home/local/runs", False), ("/homely", False),
    ("/scratch space/runs", True), ("/", False)])
def test_the_nearest_mount_tells(path: str, shared: bool) -> None:
    assert is_shared(Path(path), MOUNTS) is shared


def test_this_machines_own_list_is_read(tmp_path: Path) -> None:
    listed = Path("/proc/self/mounts").read_text(encoding="utf-8")
    assert is_shared(tmp_path) is is_shared(tmp_path, listed)
