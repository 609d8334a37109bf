"""The whole tiny study by one command: undisturbed, again for what is missing alone, and killed in its chapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from emlib.config import load_profile
from emlib.core import paths
from emlib.study.study import open_study
from emlib.workflow import graph
from emlib.workflow.cleaning import MADE
from emlib.workflow.job_log import AttemptLog
from tests.long_form import LONG
from tests.torture import differences, finish, kill_when, progress

pytestmark = pytest.mark.slow

CHAPTERS = graph.chapters()
# A part of the tiny study: what the chapters below need. Its artefacts have the same keys.
FEWER = """
extends: tiny
methods:
  - untrained
  - aligned
  - misaligned
  - {name: persona_vector, defenses: [{kind: persona_vector, layer: 2}], sweep: [2.0]}
  - {name: interleaving++, defenses: [{kind: interleaving, choose: score_without_refusals, fraction: 0.25}]}
evaluation: {triggers: null}
training: {keep: []}
persistence: null
benign: {methods: [untrained, sft], seeds: [0]}
grpo: {methods: [untrained, grpo]}
"""
# The chapters that are killed, by their names without numbers. The others are killed when something is finished: one
# that trains, one that scores a pool, one that trains by rewards; under `make torture` also those that work like these.
KILLED_AT_THEIR_START = ("data", "tables")
KILLED = (*KILLED_AT_THEIR_START, "baselines", "data_selection", "grpo",
          *(("persona_vectors", "interleaving", "benign_tasks") if LONG else ()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results of an undisturbed run."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    finish("tiny", runs)
    return runs / "tiny"


def test_the_tiny_study_leaves_every_result_and_runs_again_for_what_was_deleted_alone(
        whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(whole.parent))
    assert len(pd.read_csv(whole / "results.csv")) == len(open_study("tiny").runs())
    for made in ("tables/rates.csv", "tables/rates.md", "tables/rates.tex", "figures/rates.png", "figures/rates.pdf",
                 "tables/benign.md", "figures/benign.png", "report/index.html"):
        assert (whole / made).stat().st_size > 0
    chapters = [chapter for chapter in CHAPTERS if graph.concerns(load_profile("tiny"), chapter)]
    assert chapters == [chapter for chapter in CHAPTERS if chapter[3:] not in ("your_own_data", "newer_defenses")]
    assert sorted(path.stem for path in (whole / "notebooks").glob("*.ipynb")) == chapters
    assert len(pd.read_csv(whole / "benign.csv")) == 12  # 2 tiers, 3 methods, 2 seeds
    assert len(pd.read_csv(whole / "grpo.csv")) == 6  # 5 conditions, one of them with two settings
    for chapter in chapters:
        book = json.loads((whole / "notebooks" / f"{chapter}.ipynb").read_text())
        assert all(cell["execution_count"] for cell in book["cells"] if cell["cell_type"] == "code")
    made = {path.name for pattern in MADE for path in whole.glob(pattern)}
    assert {path.name for path in whole.iterdir()} - made == {"plugins"}  # what `make clean` keeps
    executed = whole / "notebooks"
    before = {path: path.stat().st_mtime_ns for path in executed.rglob("*.ipynb")}
    deleted = executed / "21_data_audit.ipynb"  # no other follows it
    deleted.unlink()
    finish("tiny", whole.parent)
    assert deleted.is_file()
    del before[deleted]
    assert before.items() <= {path: path.stat().st_mtime_ns for path in executed.rglob("*.ipynb")}.items()


class Killer:
    """Says when to kill: once in each chapter, whichever begins first, where the run itself has come so far."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.logs = {chapter[3:]: AttemptLog(runs / "fewer" / "logs" / f"{chapter}.log") for chapter in CHAPTERS
                     if chapter[3:] in KILLED}
        self.left = set(self.logs)
        self.begin()

    def begin(self) -> None:
        """A run is about to start."""
        self.earlier = {chapter: len(log.attempts()) for chapter, log in self.logs.items()}
        self.finished: dict[str, int] = {}  # what there was when a chapter began

    def ready(self) -> bool:
        """Whether a chapter that was not killed yet has come far enough."""
        for chapter in sorted(self.left):
            if len(self.logs[chapter].attempts()) > self.earlier[chapter]:
                now = progress(self.runs)
                if now > self.finished.setdefault(chapter, now) or chapter in KILLED_AT_THEIR_START:
                    self.left.remove(chapter)
                    return True
        return False


def test_killed_in_its_chapters_it_ends_in_the_same_results_and_artefacts(
        whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONLY", "*_tables")  # and what they need
    shutil.copy(paths.PARAMS / "tiny.yaml", tmp_path / "tiny.yaml")
    (tmp_path / "fewer.yaml").write_text(FEWER)
    profile, runs = str(tmp_path / "fewer.yaml"), tmp_path / "runs"
    killer = Killer(runs)
    while killer.left:
        killer.begin()
        assert kill_when(killer.ready, profile, runs, kernels=len(killer.left) % 2 == 0), f"ended before {killer.left}"
    finish(profile, runs)
    assert list(differences(whole, runs / "fewer", fewer=True)) == []
    assert [len(pd.read_csv(runs / "fewer" / f"{name}.csv")) for name in ("results", "benign", "grpo")] == [5, 4, 2]
    states = {chapter: [one.state for one in log.attempts()] for chapter, log in killer.logs.items()}
    assert {attempts[-1] for attempts in states.values()} == {"ended"}
    assert all("killed" in states[chapter] for chapter in KILLED_AT_THEIR_START), states
    assert sum("killed" in attempts for attempts in states.values()) > len(KILLED) // 2, states
