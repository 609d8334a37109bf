"""What the system says of this machine: its processors, bfloat16, and which paths are on shared disks."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # its words include the flags of the processor
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})  # Intel, Intel and AMD, Arm
CGROUPS = Path("/sys/fs/cgroup")
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # files of version 2, and of version 1
# The variables from which numerical libraries take their number of threads.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "NUMEXPR_NUM_THREADS",
           "VECLIB_MAXIMUM_THREADS")
OF_SCHEDULERS = ("SLURM_CPUS_PER_TASK", "NSLOTS", "NCPUS", "LSB_DJOB_NUMPROC")  # Slurm, Grid Engine, PBS, LSF
# Network file systems, which several machines share; and those of programs (FUSE), of which most are.
SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cephfs", "ceph", "cifs", "smb3", "glusterfs", "9p", "afs", "efs",
          "wekafs", "panfs", "pvfs2", "ocfs2", "gfs2", "virtiofs")
PROGRAM = "fuse."
LOCAL = ("fuse.fuse-overlayfs", "fuse.mergerfs", "fuse.encfs", "fuse.gocryptfs", "fuse.lxcfs", "fuseblk")


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


def cpus(cgroups: Path = CGROUPS) -> int:
    """Return how many processors this process may use: those that it is bound to, or its container's quota if less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in QUOTAS:
        said = " ".join((cgroups / name).read_text() for name in files if (cgroups / name).is_file()).split()
        if len(said) == 2 and said[0] not in ("max", "-1"):
            bound = min(bound, int(said[0]) // int(said[1]))
    return max(bound, 1)


def threads(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that give a job its threads: as they are set, or else as many as it has processors.

    It returns none where neither a scheduler nor a limit states their number: other jobs may use the same machine.
    """
    stated = [environment[name] for name in (THREADS[0], *OF_SCHEDULERS) if environment.get(name)]
    if not stated and cpus() >= (os.cpu_count() or 1):
        return {}
    number = stated[0] if stated else str(cpus())
    return {name: environment.get(name) or number for name in THREADS}


def is_shared(path: Path, mounts: str | None = None) -> bool:
    """Return whether the path is on a network file system, by Linux's list of mounts; False without such a list."""
    listed, resolved = Path("/proc/self/mounts"), path.resolve()  # first resolved: automount adds to the list
    text = mounts if mounts is not None else listed.read_text(encoding="utf-8") if listed.is_file() else ""
    lines = [line.split() for line in text.splitlines()]
    found = [(Path(line[1].replace(r"\040", " ")), line[2]) for line in lines]
    over = [(len(point.parts), kind) for point, kind in found if resolved.is_relative_to(point)]
    # Of several at one place, the last one hides those before it, as what automount finds hides automount's own.
    kind = max(reversed(over), key=lambda one: one[0], default=(0, ""))[1]
    return kind in SHARED or (kind.startswith(PROGRAM) and kind not in LOCAL)


if __name__ == "__main__":  # for the Makefile, before anything is installed
    print(cpus())
