"""A defense of one's own as a profile's method: swept, planned, kept under its source, tabulated, drawn, exported."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from emlib import __version__
from emlib.core import paths, plugins, registry
from emlib.core.errors import ProfileError
from emlib.core.of_kind import unknown_kinds_allowed
from emlib.report.estimate import Estimate
from emlib.report.export import adapter as export_adapter
from emlib.report.figures.looks import look_of
from emlib.report.tables import result_tables
from emlib.study.study import Study, open_study
from emlib.workflow import graph
from emlib.workflow.notebooks import execute

PLUGIN = '''"""A defense of one's own."""

from typing import ClassVar, Literal

from emlib import Defense


class LogitDrift(Defense):
    """The squared change of the response tokens' logits."""

    label: ClassVar = "Logit drift"
    swept: ClassVar = "weight"
    null: ClassVar = {"weight": 0.0}
    per: ClassVar = "response_token"
    wants_reference: ClassVar = True

    kind: Literal["logit_drift"] = "logit_drift"
    weight: float = 0.01

    def penalty(self, trained, reference):
        return (trained.response_logits - reference.response_logits).square().sum()
'''
PROFILE = """extends: tiny
name: mine
title: A defense of one's own
plugins: [logit_drift.py]
training: {epochs: 2, keep: []}
evaluation: {triggers: null}
methods:
  - misaligned
  - {name: logit_drift, defenses: [{kind: logit_drift}], sweep: [0.1, 1.0]}
"""


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    registry.kinds()
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    monkeypatch.setenv(plugins.ALLOW, "yes")
    yield
    sys.modules.pop("emlib_plugin_logit_drift", None)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    (tmp_path / "logit_drift.py").write_text(PLUGIN)
    (tmp_path / "mine.yaml").write_text(PROFILE)
    return tmp_path / "mine.yaml"


def keys(study: Study) -> list[str]:
    return [study.task(run).adapter(run).key for run in study.runs(methods=["logit_drift"])]


def test_it_is_planned_trained_tabulated_drawn_and_exported(profile: Path, tmp_path: Path) -> None:
    study = open_study(str(profile))
    runs = study.runs(methods=["logit_drift"])
    assert [run.setting for run in runs] == [0.1, 1.0]
    planned = {one.run: one.work for one in Estimate(study).plan.runs}
    plain = planned[study.runs(methods=["misaligned"])[0]]
    assert planned[runs[0]].train == plain.train
    assert planned[runs[0]].read - plain.read == planned[runs[0]].train  # the reference model's pass
    results = study.complete(runs)
    frame = pd.read_csv(study.folder / "results.csv")
    assert frame[["method", "setting"]].values.tolist() == [["logit_drift", 0.1], ["logit_drift", 1.0]]
    assert result_tables.readable(result_tables.numbers(results))["Method"].tolist() == ["logit_drift"] * 2
    assert look_of("logit_drift")[:2] != look_of("misaligned")[:2]
    card = (export_adapter(study, runs[0], tmp_path / "out") / "README.md").read_text()
    assert "'kind': 'logit_drift'" in card
    digest = hashlib.sha256((tmp_path / "logit_drift.py").read_bytes()).hexdigest()
    assert f"of the plugin `logit_drift.py` (SHA-256 {digest})" in card
    assert "2 epochs, learning rate" in card
    assert "Judge: lexicon, which counts words" in card
    assert f"by emlib {__version__}" in card
    assert str(tmp_path) not in card
    assert study.log(runs[0])[-1].penalties["logit_drift"] > 0


def test_the_notebooks_of_a_study_train_it(profile: Path, tmp_path: Path) -> None:
    with unknown_kinds_allowed():
        assert {"10_newer_defenses", "15_tables"} <= {job.chapter for job in graph.jobs(str(profile))}
    execute("10_newer_defenses", {"profile": str(profile)}, tmp_path / "10.ipynb")
    frame = pd.read_csv(open_study(str(profile)).folder / "results.csv")
    assert frame[frame["method"] == "logit_drift"]["setting"].tolist() == [0.1, 1.0]


def test_its_key_changes_with_its_source_and_with_nothing_else(profile: Path, tmp_path: Path) -> None:
    before = keys(open_study(str(profile)))
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    assert keys(open_study(str(profile))) == before
    (tmp_path / "logit_drift.py").write_text(PLUGIN.replace(".square()", ".abs()"))
    after = keys(open_study(str(profile)))
    assert not set(after) & set(before)


def test_without_consent_it_is_refused_and_status_still_works(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fresh processes, whose registries know nothing of the plugin."""
    def run(module: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = {key: value for key, value in os.environ.items() if key != plugins.ALLOW}
        return subprocess.run([sys.executable, "-m", module, str(profile)], check=False, capture_output=True, text=True,
                              env=env | {"PYTHONPATH": str(paths.ROOT)} | more)

    refused = run("emlib.workflow.graph")
    assert refused.returncode == 1
    assert "PLUGINS=yes" in refused.stderr
    assert run("emlib.workflow.graph", PLUGINS="yes").returncode == 0
    status = run("emlib.workflow.status")
    assert status.returncode == 0, status.stderr
    assert status.stdout.startswith("mine: ")


def test_it_is_refused_where_it_does_not_work(profile: Path) -> None:
    text = PROFILE + ("grpo:\n  data: {kind: additions}\n  methods:\n    - grpo\n"
                      "    - {name: mine, defenses: [{kind: logit_drift}]}\n")
    profile.write_text(text)
    with pytest.raises(ProfileError, match=r"logit_drift.*reinforcement"):
        open_study(str(profile))
