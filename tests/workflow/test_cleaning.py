"""`make clean`: results go, what cost something stays unless it is named, and a running job is not disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emlib.core.errors import StoreError
from emlib.report import panel
from emlib.study.study import Study, open_study
from emlib.workflow.cleaning import MADE, clean
from tests.store.made import Made
from tests.store.test_store import left
from tests.workflow.test_job_log import said, start


def make(folder: Path) -> dict[str, Any]:
    (folder / "file").write_text("made")
    return {}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The tiny study with an adapter, answers and verdicts of one run, an adapter of nobody's, and results."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    found = open_study("tiny")
    run = next(run for run in found.runs() if run.method == "misaligned")
    task = found.task(run)
    for step in (task.adapter(run), Made("adapter", {"of": "another study"}), task.answers(run)["general"],
                 task.evaluation(run)["general"]):
        found.store.get(step, make)
    (found.folder / "tables").mkdir(parents=True)
    (found.folder / "results.csv").write_text("made")
    return found


def kept(study: Study) -> dict[str, int]:
    return {stage: len([one for one in study.store.all() if one.stage == stage])
            for stage in ("adapter", "answers", "verdicts")}


def test_results_go_and_all_that_was_computed_stays(study: Study) -> None:
    before = left(study.store.root)
    said_so = clean(study)
    assert str(study.folder) in said_so
    assert not study.folder.exists()
    assert left(study.store.root) == before
    assert "no results" in clean(study)


@pytest.mark.parametrize(("what", "expected"), [
    (["adapters"], {"adapter": 1, "answers": 1, "verdicts": 1}),  # that of another study is left
    (["answers"], {"adapter": 2, "answers": 0, "verdicts": 1}),
    (["verdicts", "answers"], {"adapter": 2, "answers": 0, "verdicts": 0})])
def test_only_what_is_named_goes_and_only_of_this_profile(
        study: Study, what: list[str], expected: dict[str, int]) -> None:
    told = clean(study, what)
    assert [f"1 {kind} were removed" in line for kind, line in zip(what, told.splitlines(), strict=True)]
    assert kept(study) == expected
    assert (study.folder / "results.csv").is_file()


def test_a_typo_removes_nothing(study: Study) -> None:
    before = left(study.folder.parent)
    with pytest.raises(StoreError, match="Did you mean 'verdicts'"):
        clean(study, ["answers", "verdict"])
    assert left(study.folder.parent) == before


def test_while_a_job_runs_nothing_is_removed(study: Study) -> None:
    with start(study.folder / "logs" / "02_baselines.log") as process:
        assert said(process) == "at work"
        with pytest.raises(StoreError, match="02_baselines is running"):
            clean(study)
        process.communicate("go\n")
    assert (study.folder / "results.csv").is_file()
    clean(study)


def test_a_profile_named_like_the_store_does_not_take_it_along(study: Study) -> None:
    before = left(study.store.root)
    with pytest.raises(StoreError, match="no profile's results"):
        clean(Study("store", study.profile, study.store))
    assert left(study.store.root) == before


def test_the_type_that_a_profile_states_is_no_record_to_keep(study: Study) -> None:
    """A later profile of the name with `dtype: auto` would compute in it for good."""
    study.record()
    assert (study.folder / "dtype.txt").is_file()
    clean(study)
    assert not study.folder.exists()


def test_what_is_the_users_own_stays_and_is_named(study: Study) -> None:
    """Notebook 18 writes defenses to be edited there, and `dtype: auto` finds its artefacts by the recorded type."""
    study.auto_dtype = True
    study.record()
    own = {"plugins/mine.py": "class Mine: ...", "notes.txt": "why", "dtype.txt": "float32\n"}
    for name, text in own.items():
        (study.folder / name).parent.mkdir(exist_ok=True)
        (study.folder / name).write_text(text)
    for made in (".snakemake/log", "notebooks/slices", "vllm-8000.log", ".dtype.txt.lock"):
        (study.folder / made).mkdir(parents=True) if "/" in made else (study.folder / made).touch()
    told = clean(study)
    assert "Kept there: dtype.txt, " in told
    assert "notes.txt, plugins." in told
    assert {name: (study.folder / name).read_text() for name in own} == own
    assert {path.name for path in study.folder.iterdir()} == {"dtype.txt", "made_with.txt", "notes.txt", "plugins"}


def test_the_file_of_the_panel_is_among_what_is_removed() -> None:
    assert panel.FILE in MADE  # which stands above this package
