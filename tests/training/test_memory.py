"""The peak of memory is that of the work, not of what the process did before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from emlib.training import memory

# In a process of its own: one that has run for long holds freed memory, which the work may use without asking for more.
MEASURED = """
import torch
from emlib.training.memory import peak_memory
large = torch.ones(100 * 2**18)  # 100 MiB, gone before
del large
cpu = torch.device("cpu")
with peak_memory(cpu) as before:
    pass
with peak_memory(cpu) as peak:
    torch.ones(60 * 2**18).sum()
print(peak.mib - before.mib)
"""


def test_the_peak_is_of_what_was_done_meanwhile() -> None:
    if not memory.CLEAR.exists():
        pytest.skip("this system does not tell a process its peak")
    done = subprocess.run([sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True)
    assert 55 < float(done.stdout) < 90
