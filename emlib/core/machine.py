"""What the system says of this machine: whether its processor has bfloat16, and which paths are on shared disks."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # its words include the flags of the processor
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})  # Intel, Intel and AMD, Arm
# Network file systems, which several machines share.
SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cephfs", "ceph", "cifs", "smb3", "glusterfs", "9p", "afs", "efs",
          "fuse.glusterfs", "fuse.sshfs", "fuse.juicefs", "fuse.s3fs", "fuse.gcsfuse")


def computes_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Tell whether the processor has instructions for products of bfloat16 matrices (AMX, AVX-512 BF16 or Arm BF16).

    Without them, bfloat16 is emulated and slower than float32. An unknown system counts as one without.
    """
    if cpuinfo.is_file():
        return not BF16_FLAGS.isdisjoint(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    return platform.system() == "Darwin" and _sysctl("hw.optional.arm.FEAT_BF16") == "1"


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def is_shared(path: Path, mounts: str | None = None) -> bool:
    """Return whether the path is on a network file system, by Linux's list of mounts; False without such a list."""
    listed = Path("/proc/self/mounts")
    text = mounts if mounts is not None else listed.read_text(encoding="utf-8") if listed.is_file() else ""
    lines = [line.split() for line in text.splitlines()]
    found = [(Path(line[1].replace(r"\040", " ")), line[2]) for line in lines]
    over = [(len(point.parts), kind) for point, kind in found if path.resolve().is_relative_to(point)]
    return bool(over) and max(over, key=lambda one: one[0])[1] in SHARED
