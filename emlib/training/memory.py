"""The most memory that a piece of work took, on a GPU what torch allocated, on a CPU what the process held; and what to
do where there is not enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from emlib.config import Training
from emlib.core.errors import EmlibError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what Linux takes as: forget the peak so far


@dataclass
class Peak:
    """MiB at the most, the model's weights included; None while the work lasts, and where the system does not tell."""

    mib: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure what is done while it lasts."""
    peak = Peak()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    told = on_gpu or _forget_peak()
    try:
        yield peak
    finally:
        if told:
            peak.mib = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else _process_peak()


def _forget_peak() -> bool:
    """Whether the process's peak could be set back to what it holds now (Linux alone, and not in every container)."""
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _process_peak() -> float | None:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else None


@contextmanager
def told_when_out(settings: Training, log: Path) -> Iterator[None]:
    """Training that runs out of a GPU's memory says what to change.

    Raises:
        EmlibError: it did; the log is kept.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        keeps = settings.gradient_checkpointing
        raise EmlibError(
            f"Training ran out of the GPU's memory. Set training.gradient_checkpointing to true (it is "
            f"{str(keeps).lower()}), lower training.batch_size (it is {settings.batch_size}) and raise "
            f"training.gradient_accumulation as much, or lower training.max_seq_length (it is "
            f"{settings.max_seq_length}). The log so far is {log}. Torch says: {error}") from error
