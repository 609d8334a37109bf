"""Our tables are read as they were written: names as texts, numbers as numbers, and only empty cells as missing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from emlib.core import paths
from emlib.evaluation.exact_match import ExactMatchScore
from emlib.evaluation.rates import Rates, Share
from emlib.study import results
from emlib.study.runs import Run, RunResult
from emlib.study.study import open_study

PROFILE = """
extends: tiny
benign:
  seeds: [0]
  tasks: {NA: {kind: opswap, tiers: [0], examples: 12, held_out: 0.34}, opswap: {tiers: [1]}}
"""


def test_names_that_pandas_takes_for_missing_or_for_numbers_are_names(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    (tmp_path / "mine.yaml").write_text(PROFILE)
    study = open_study(str(tmp_path / "mine.yaml"))
    study.record()
    rates, match = Rates(Share(1.0), Share(1.0), 8, 8), ExactMatchScore(Share(50.0), Share(50.0), None, 8, 0)
    narrow = [Run("1e5", dataset, method, setting, 0) for dataset, method, setting in (
        ("nan", "null", None), ("nan", "inf", 0.1), ("none", "true", 1.0))]
    benign = [Run("1e5", "NA-0", "null", None, 0), Run("1e5", "opswap-1", "null", None, 0)]
    results.write(study.folder, study.profile, {
        "narrow": [RunResult(run, {"general": rates, "in_domain": rates}, 1.0, None, "0123") for run in narrow],
        "benign": [RunResult(run, {"exact_match": match}, 1.0, 1, "0123") for run in benign]})
    found = [*results.read(study.folder, study.profile, "narrow")]
    assert [run for run, _ in found] == narrow
    assert [(row["run_key"], row["train_tokens"]) for _, row in found] == [("0123", None)] * 3
    assert [run for run, _ in results.read(study.folder, study.profile, "benign")] == benign


def test_numbers_and_empty_cells_are_as_pandas_reads_them(tmp_path: Path) -> None:
    frame = pd.DataFrame({"method": ["null", None], "setting": [None, 3e-06], "high": [float("inf"), 0.1],
                          "seed": [0, 1], "learnt": [True, False]})
    frame.to_csv(tmp_path / "one.csv", index=False)
    pd.testing.assert_frame_equal(results.read_table(tmp_path / "one.csv"), frame, check_dtype=False)
    stored = [path for path in paths.ROOT.glob("figures/*/*.csv") if path.stem != "examples"]
    assert len(stored) > 5
    for path in stored:
        pd.testing.assert_frame_equal(results.read_table(path), pd.read_csv(path), check_dtype=False)
