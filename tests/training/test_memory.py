"""The peak of memory is that of the work, not of what the process did before."""

from __future__ import annotations

import pytest
import torch

from emlib.training import memory


def test_the_peak_is_of_what_was_done_meanwhile() -> None:
    if not memory.CLEAR.exists():
        pytest.skip("this system does not tell a process its peak")
    large = torch.ones(100 * 2**18)  # 100 MiB, gone before
    del large
    with memory.peak_memory(torch.device("cpu")) as before:
        pass
    with memory.peak_memory(torch.device("cpu")) as peak:
        torch.ones(60 * 2**18).sum()
    assert before.mib is not None
    assert peak.mib is not None
    assert 55 < peak.mib - before.mib < 90
