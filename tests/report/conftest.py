"""The paper's text, which is not part of the project: EMLIB_PAPER names its file, or the folder that holds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def paper() -> str:
    """The text of arXiv 2508.06249v3."""
    named = os.environ.get("EMLIB_PAPER")
    if not named:
        pytest.skip("EMLIB_PAPER is not set: there is no text of the paper to compare with")
    path = Path(named)
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    assert len(files) == 1, f"EMLIB_PAPER={named}: expected one text, found {len(files)}"
    return files[0].read_text(encoding="utf-8")
