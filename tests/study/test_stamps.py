"""After a profile is edited, nothing of its former version counts as done, as measured or as found."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from emlib.config import NO_TRIGGER
from emlib.core import paths
from emlib.data.sizes import Sizes
from emlib.evaluation.rates import Rates, Share
from emlib.report.book.build import findings, progress
from emlib.report.estimate import Estimate
from emlib.report.figures import plots
from emlib.report.paper import of_study
from emlib.report.tables import result_tables
from emlib.study import overrides, results, stamps
from emlib.study.plan.build import finished
from emlib.study.runs import GrpoScore, Run, RunResult
from emlib.study.study import Study, open_study

PROFILE = """
extends: tiny
methods: [misaligned]
training: {keep: [], epochs: 1}
evaluation: {triggers: {methods: [misaligned], contexts: {kitchen: {prompt: 'In the kitchen. {question}'}}}}
monitor: null
persistence: null
"""
EDITS = {"another training": ("epochs: 1", "epochs: 2"), "a trigger of one name": ("In the kitchen.", "In the shed."),
         "another trigger": ("kitchen:", "shed:")}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    (tmp_path / "mine.yaml").write_text(PROFILE)
    return tmp_path / "mine.yaml"


def opened(path: Path, old: str = "", new: str = "") -> Study:
    """The study of a profile, after an edit."""
    path.write_text(PROFILE.replace(old, new) if old else PROFILE)
    return open_study(str(path))


def write(study: Study) -> Run:
    """What notebook 02 writes when its run is finished, and the run."""
    [run] = study.runs()
    adapter = study.task(run).adapter(run)
    assert adapter is not None
    tokens = adapter.cost(Sizes()).train
    rates = Rates(Share(1.0), Share(1.0), 8, 8)
    study.record()
    found = RunResult(run, {"general": rates, "in_domain": rates}, 10.0, tokens, "a key")
    results.write(study.folder, study.profile, {"narrow": [found]})
    return run


def write_table(study: Study, run: Run) -> None:
    """What notebook 11 writes of a run."""
    rows = [{"dataset": run.task, "method": run.method, "setting": None, "seed": run.seed, "trigger": trigger,
             "misaligned": share, "asked": 8} for trigger, share in ((NO_TRIGGER, 10.0), ("kitchen", 80.0))]
    frame = pd.DataFrame(rows)
    result_tables.write(frame, frame, study.folder / "tables", "triggers")


@pytest.mark.parametrize("edit", EDITS)
def test_a_table_of_the_former_profile_makes_no_run_done(path: Path, edit: str) -> None:
    former = opened(path)
    run = write(former)
    assert finished(former) == frozenset(), "it lacks its triggers"
    write_table(former, run)
    assert finished(former) == {run}
    study = opened(path, *EDITS[edit])
    assert finished(study) == frozenset()
    write(study)
    assert finished(study) == frozenset(), "notebook 02 has run, and 11 has not"
    write_table(study, run)
    assert finished(study) == {run}
    back = opened(path)
    write(back)
    assert finished(back) == frozenset()


def test_results_of_the_former_profile_are_removed_before_another_is_recorded(path: Path) -> None:
    study = open_study(str(path))
    write(study)
    runs = study.runs("grpo")
    results.write(study.folder, study.profile, {"grpo": [
        RunResult(run, {"rewards": GrpoScore(0.5, 1.0, 0.75, 3.0, 10, 10)}, 1.0, 1, "a key") for run in runs]})
    assert {run for run in finished(study) if run.task == "grpo"} == set(runs)
    assert f"{len(runs)} of {len(runs)} runs of reinforcement learning" in progress(study)
    edited = opened(path, "epochs: 1", "epochs: 2")
    assert f"0 of {len(runs)} runs of reinforcement learning" in progress(edited)
    assert finished(edited) == frozenset()
    assert edited.write_results() == []  # no run of it is in the store
    assert not [name for name in stamps.RESULTS if (study.folder / name).exists()]
    assert (finished(edited), finished(opened(path))) == (frozenset(), frozenset())


def test_a_section_without_a_finished_run_keeps_no_file(path: Path) -> None:
    """Also under the same profile, such as after `make clean WHAT=verdicts`."""
    study = open_study(str(path))
    write(study)
    assert study.write_results() == []
    assert not (study.folder / "results.csv").exists()


def test_what_changes_no_result_makes_nothing_stale(path: Path) -> None:
    study = open_study(str(path))
    run = write(study)
    write_table(study, run)
    retitled = opened(path, "extends: tiny", "extends: tiny\ntitle: Another title\njob: {hours: 3}")
    retitled.record()
    assert "Another title" in (study.folder / paths.EFFECTIVE).read_text()
    assert finished(retitled) == {run}


def test_estimated_and_measured_are_of_one_profile(path: Path) -> None:
    study = open_study(str(path))
    write(study)
    [row] = Estimate(study).errors().to_dict("records")
    assert (row["of what is done"], row["measured / estimated"]) == ("tokens of 1 trained runs", 1.0)
    assert Estimate(opened(path, "epochs: 1", "epochs: 2")).errors().empty


def test_a_study_with_overrides_keeps_its_results_unless_its_profile_was_edited(path: Path) -> None:
    path.write_text(f"{PROFILE}model: {{dtype: auto}}\n")
    name = overrides.study_with(str(path), "seeds=[3]")
    study = open_study(name)
    write(study)
    recorded = (study.folder / paths.EFFECTIVE).read_text()
    assert overrides.study_with(str(path), "seeds=[3]") == name  # as `make status SET=...` does
    assert (study.folder / paths.EFFECTIVE).read_text() == recorded, "with the data type that was chosen"
    assert (study.folder / "results.csv").is_file()
    path.write_text(PROFILE.replace("epochs: 1", "epochs: 2"))
    assert overrides.study_with(str(path), "seeds=[3]") == name
    assert not (study.folder / "results.csv").exists()


def test_the_report_claims_nothing_from_a_table_of_the_former_profile(path: Path) -> None:
    study = open_study(str(path))
    write_table(study, write(study))
    assert ["`misaligned` 10.0, at worst 80.0" in claim.text for claim in findings(
        study.folder, study.profile).claims] == [True]
    edited = opened(path, "epochs: 1", "epochs: 2")
    assert findings(study.folder, edited.profile).claims == []
    edited.record()
    assert findings(study.folder, edited.profile).claims == []
    (study.folder / "tables" / "triggers.tex").unlink()  # as by a version without stamps
    assert len(findings(study.folder, edited.profile).claims) == 1
    without = opened(path, "evaluation: {", "evaluation: {sets: {}, triggers: null}  # {")
    assert findings(study.folder, without.profile).claims == [], "the profile has no chapter 11 any more"


def test_a_figure_and_a_table_have_the_stamp_of_the_recorded_profile(path: Path) -> None:
    study = open_study(str(path))
    write_table(study, write(study))
    plots.save(plt.subplots()[0], study.folder / "figures", "one")
    files = [study.folder / "tables" / "triggers.tex", study.folder / "figures" / "one.png"]
    assert {stamps.of_file(file) for file in files} == {stamps.recorded(study.folder)}
    assert stamps.present(study.profile, study.folder) == {stamps.recorded(study.folder)}
    plots.save(plt.subplots()[0], path.parent / "elsewhere" / "figures", "two")
    assert stamps.of_file(path.parent / "elsewhere" / "figures" / "two.png") is None
    plt.close("all")


def test_a_figure_of_which_nothing_is_left_is_removed(path: Path) -> None:
    study = open_study(str(path))
    folder = study.folder / "figures"
    for name in ("pareto", "figure2", "figure3", "questions_law"):
        plots.save(plt.subplots()[0], folder, name)
    plt.close("all")
    of_study.draw("pareto", {}, folder)
    of_study.draw_questions({}, folder)
    of_study.draw_rewards(study, folder)  # no GRPO run is finished
    assert list(folder.iterdir()) == []
