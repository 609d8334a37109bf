"""What tests of judges share: no progress bars, and a file of scores in a folder of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from emlib.core import paths


@pytest.fixture(autouse=True)
def _headless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_HEADLESS", "1")


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """The file of scores of a folder of runs, not yet there."""
    return tmp_path / "runs" / "scores.sqlite"


@pytest.fixture
def priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A price for judge-1: one cent a token."""
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    (tmp_path / "prices.yaml").write_text("date: today\nmodels: {judge-1: {read: 10000.0, written: 10000.0}}\n")
