"""Detects network file systems, which several machines share."""

from __future__ import annotations

from pathlib import Path

SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cephfs", "ceph", "cifs", "smb3", "glusterfs", "9p", "afs", "efs",
          "fuse.glusterfs", "fuse.sshfs", "fuse.juicefs", "fuse.s3fs", "fuse.gcsfuse")


def is_shared(path: Path, mounts: str | None = None) -> bool:
    """Return whether the path is on a network file system, by Linux's list of mounts; False without such a list."""
    listed = Path("/proc/self/mounts")
    text = mounts if mounts is not None else listed.read_text(encoding="utf-8") if listed.is_file() else ""
    lines = [line.split() for line in text.splitlines()]
    found = [(Path(line[1].replace(r"\040", " ")), line[2]) for line in lines]
    over = [(len(point.parts), kind) for point, kind in found if path.resolve().is_relative_to(point)]
    return bool(over) and max(over, key=lambda one: one[0])[1] in SHARED
