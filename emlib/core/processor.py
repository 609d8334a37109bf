"""What the processor can do, read from its flags without loading torch."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # its words include the flags of the processor
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})  # Intel, Intel and AMD, Arm


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
