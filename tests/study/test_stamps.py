"""After a profile is edited, nothing of its former version counts as done, as measured or as found."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from emlib.config import NO_TRIGGER, Profile, load_profile
from emlib.config.training import Training
from emlib.core import paths
from emlib.core.defense import Defense
from emlib.core.errors import ProfileError
from emlib.core.plain_yaml import as_yaml
from emlib.core.registry import is_ours, kinds
from emlib.core.schema import Strict, kind_of
from emlib.data.sizes import Sizes
from emlib.evaluation.rates import Rates, Share
from emlib.report.book.build import findings, progress
from emlib.report.estimate import Estimate
from emlib.report.figures import plots
from emlib.report.paper import of_study
from emlib.report.tables import result_tables
from emlib.study import overrides, results, stamps
from emlib.study.plan.build import finished
from emlib.study.runs import FILES, GrpoScore, Run, RunResult
from emlib.study.stamps import contents_of
from emlib.study.study import Study, open_study
from emlib.workflow.graph import content_digest, contents_for

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
    assert not [name for name in FILES.values() if (study.folder / name).exists()]
    assert (finished(edited), finished(opened(path))) == (frozenset(), frozenset())


def test_a_section_without_a_finished_run_keeps_no_file(path: Path) -> None:
    """Also under the same profile, such as after `make clean WHAT=verdicts`."""
    study = open_study(str(path))
    write(study)
    assert study.write_results() == []
    assert not (study.folder / "results.csv").exists()


JUDGE = "judge: {kind: openai, model: judge-1, base_url: 'http://localhost:1/v1'"
CHANGED = {"the title": "title: Another\n", "the job": "job: {hours: 3}\n", "the slices": "slice_by: [seed]\n",
           "a server": "backend: {base_url: 'http://localhost:2'}\n",
           **{option: f"{JUDGE}, {option}: 3}}\n" for option in ("max_usd", "timeout", "max_concurrency", "tries")}}


@pytest.mark.parametrize("change", CHANGED)
def test_what_changes_no_result_makes_nothing_stale(path: Path, change: str) -> None:
    extended = f"extends: tiny\n{JUDGE}}}\n"
    study = opened(path, "extends: tiny\n", extended)
    run = write(study)
    write_table(study, run)
    said = CHANGED[change]
    changed = opened(path, "extends: tiny\n", f"extends: tiny\n{said}" if "judge:" in said else extended + said)
    assert changed.profile != study.profile
    assert content_digest("15_tables", contents_for(changed.profile)) == content_digest(
        "15_tables", contents_for(study.profile)), "no job runs again"
    changed.record()
    assert open_study(str(study.folder / paths.EFFECTIVE)).profile.model_copy(update={"name": None}) == changed.profile
    assert finished(changed) == {run}
    other = opened(path, "extends: tiny\n", extended.replace("judge-1", "judge-2"))
    assert finished(other) == frozenset()


def test_after_an_edit_of_a_file_that_the_profile_names_former_tables_count_no_more(path: Path) -> None:
    questions = path.parent / "questions.jsonl"

    def asked(question: str) -> Study:
        questions.write_text(f'{{"id": "a", "question": "{question}"}}\n')
        return opened(path, "evaluation: {", "evaluation: {general: questions.jsonl, ")

    study = asked("What is new?")
    run = write(study)
    write_table(study, run)
    assert finished(asked("What is new?")) == {run}
    edited = asked("What is old?")
    assert finished(edited) == frozenset()
    edited.record()
    assert not (study.folder / "results.csv").exists()
    assert findings(study.folder, edited.profile).claims == []


def records(base: type[Strict]) -> list[type[Strict]]:
    """Every class of records below one."""
    return [one for cls in base.__subclasses__() for one in (cls, *records(cls))]


def test_no_record_but_a_defense_has_its_kind_by_default() -> None:
    """Of a record at its class's defaults, a stamp has nothing; of a defense it has the kind besides."""
    kinds("fine-tuning")
    by_default = [one for one in records(Strict) if kind_of(one) and not one.model_fields["kind"].is_required()]
    assert len(by_default) > 10
    assert [one for one in by_default if not issubclass(one, Defense)] == []
    assert len([one for one in records(Strict) if kind_of(one)]) > len(by_default) + 10


@pytest.mark.parametrize("section", ["", "benign", "grpo"])
def test_a_method_that_gets_another_defense_under_its_name_is_another(path: Path, section: str) -> None:
    """Every pair of kinds, each as it is without a stated option or with the least that it needs."""
    found: dict[str, str] = {}
    for kind, cls in kinds("grpo" if section == "grpo" else "fine-tuning").items():
        if not is_ours(cls):
            continue
        needed = ", source: demo/pool.jsonl, share: 0.5" if (section, kind) == ("grpo", "interleaving") else ""
        text = f"methods: [{{name: mine, defenses: [{{kind: {kind}{needed}}}]}}]"
        path.write_text(f"extends: demo\n{f'{section}: {{{text}}}' if section else text}\n")
        try:
            profile = load_profile(str(path))
        except ProfileError:  # it does not work alone, or not here
            continue
        found[kind] = stamps.stamp_of(profile, "mine") + content_digest("01_data", contents_for(profile))
    assert len(found) >= 4
    assert len(set(found.values())) == len(found)


class MoreTraining(Training):
    """A section of a later version of emlib, with another option."""

    another: bool = False


class LaterProfile(Profile):
    """A profile of a later version of emlib."""

    training: MoreTraining = MoreTraining()
    further: int | None = None


def test_an_option_of_a_later_version_changes_no_stamp_until_it_is_used(path: Path) -> None:
    study = open_study(str(path))
    plain = study.profile.model_dump(mode="json")
    assert contents_of(LaterProfile.model_validate_json(json.dumps(plain))) == contents_of(study.profile)
    for used in ({"further": 1}, {"training": plain["training"] | {"another": True}}):
        later = LaterProfile.model_validate_json(json.dumps(plain | used))
        assert contents_of(later) != contents_of(study.profile)


def test_a_record_of_an_earlier_version_stays_that_of_the_profile(path: Path) -> None:
    """It has no stamp, and lacks newer options."""
    study = open_study(str(path))
    run = write(study)
    record = study.folder / paths.EFFECTIVE
    older = overrides.as_kept(study.profile)
    del older["training"]["scheduler"], older["sources"], older["backend"]
    record.write_text(f"# The profile\n{as_yaml(older)}")
    assert stamps.is_recorded(study.profile, study.folder)
    study.record()
    assert (study.folder / "results.csv").is_file()
    write_table(study, run)
    assert finished(study) == {run}
    edited = opened(path, "epochs: 1", "epochs: 2")
    record.write_text(f"# The profile\n{as_yaml(older)}")
    assert not stamps.is_recorded(edited.profile, study.folder)


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
    assert stamps.stamp_of(study.profile, study.name) == stamps.recorded(study.folder)
    plots.save(plt.subplots()[0], path.parent / "elsewhere" / "figures", "two")
    assert stamps.of_file(path.parent / "elsewhere" / "figures" / "two.png") is None
    plt.close("all")


def test_what_a_study_writes_has_its_stamp_whichever_profile_the_folder_records(path: Path) -> None:
    """A kernel stays open while its profile is edited and runs again; or notebook 16 runs before notebook 15."""
    study = opened(path)
    run = write(study)
    former = stamps.recorded(study.folder)
    path.write_text(PROFILE.replace("epochs: 1", "epochs: 2"))
    overrides.keep(load_profile(str(path)), study.folder, "as another process does")
    edited = stamps.recorded(study.folder)
    files = [study.folder / "tables" / "triggers.tex", *(study.folder / "figures" / name for name in (
        "one.png", "newer/one.png"))]

    def written() -> set[str | None]:
        write_table(study, run)
        for file in files[1:]:
            plots.save(plt.subplots()[0], file.parent, "one")
        return {stamps.of_file(file) for file in files}

    assert written() == {former} != {edited}
    open_study(str(path))
    assert written() == {edited}
    write(opened(path))
    assert written() == {former}
    path.write_text(PROFILE.replace("epochs: 1", "epochs: 2"))
    open_study(str(path))  # nothing is recorded
    assert stamps.recorded(study.folder) == former
    assert written() == {edited}
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
