"""What the machine is and what it did meanwhile, from Linux's /proc."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from emlib.config.words import Dtype

TICKS = os.sysconf("SC_CLK_TCK")


def device() -> dict[str, Any]:
    """The processor, its cores and the memory."""
    processor = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": processor[1] if processor else "unknown", "cores": os.cpu_count(), "memory_gib": round(memory, 1)}


def dtype() -> Dtype:
    """The paper's bfloat16 where the processor computes with it; where it only emulates it, at a thirtieth, float32."""
    import torch

    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def memory_mib(field: str) -> float:
    """A line of this process's /proc/self/status in MiB: VmRSS is what it holds now, VmHWM the most it ever held.

    Not resource.ru_maxrss: a child takes that over from the process that started it.
    """
    line = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if line is None:
        raise SystemExit(f"/proc/self/status has no {field}; this benchmark needs Linux.")
    return round(int(line[1]) / 1024, 1)


class Others:
    """How much of the machine all other processes took since this object was made."""

    def __init__(self) -> None:
        self.started, self.busy, self.own = time.perf_counter(), _busy_seconds(), time.process_time()

    def share(self) -> float:
        """0: nobody else ran. 1: they had all the cores all the time."""
        elapsed = (time.perf_counter() - self.started) * (os.cpu_count() or 1)
        return round(max(0.0, self.seconds() / elapsed), 4)

    def seconds(self) -> float:
        """Of all cores together."""
        return _busy_seconds() - self.busy - (time.process_time() - self.own)


def wait_until_quiet(share: float, patience: float) -> None:
    """Return once others took less than `share` of the machine for 3 s, or after `patience` seconds at the latest."""
    until = time.perf_counter() + patience
    while time.perf_counter() < until:
        others = Others()
        time.sleep(3)
        if others.share() < share:
            return


def _busy_seconds() -> float:
    """Seconds that all cores together spent on anything, what the host took from them included."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS
