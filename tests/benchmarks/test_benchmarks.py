"""What every benchmark has to offer `benchmarks/run.py`, and that the results that are kept can be shown."""

from __future__ import annotations

import importlib
import json
from types import ModuleType

import pytest

from emlib.core import paths

FOLDER = paths.ROOT / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("run")


def test_every_benchmark_measures_and_shows_what_is_kept(run: ModuleType) -> None:
    for name in run.BENCHMARKS:
        benchmark = importlib.import_module(name)
        assert name == benchmark.NAME
        assert callable(benchmark.measure), name
        assert benchmark.__doc__, name
        kept = FOLDER / "results" / f"{name}.json"
        if kept.is_file():
            result = json.loads(kept.read_text())
            shown = [*benchmark.table(result), *run.bars(result)]
            assert all(line.startswith("|") or not line for line in shown), name
        assert f"`{name}`" in (FOLDER / "README.md").read_text()


def test_a_benchmark_that_is_none_is_told(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "opswop"])
    with pytest.raises(SystemExit, match="There is no benchmark opswop"):
        run.main()
