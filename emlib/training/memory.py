"""Peak memory (on a GPU of torch's allocations, on a CPU of the process), and advice where memory runs out."""

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
RESET_PEAK = "5"  # Linux resets the peak on this value


@dataclass
class Peak:
    """Peak MiB, including the model's weights; None while the work lasts, and where the system does not report it."""

    mib: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak memory of the work inside the context."""
    peak = Peak()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    measurable = on_gpu or _reset_peak()
    try:
        yield peak
    finally:
        if measurable:
            peak.mib = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else _process_peak()


def _reset_peak() -> bool:
    """Reset the process's peak to its present memory; return whether that works (Linux, not in every container)."""
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _process_peak() -> float | None:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else None


@contextmanager
def explained_out_of_memory(settings: Training, log: Path) -> Iterator[None]:
    """Turn torch's out-of-memory error into one that says what to change.

    Raises:
        EmlibError: the GPU's memory ran out; the log is kept.
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
