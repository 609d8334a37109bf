"""A whole study on the tiny model: what it leaves, and what it does not do twice."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from emlib.config import QUESTION_SETS, NoJudge, QuestionSet, load_profile
from emlib.core import paths
from emlib.core.errors import ProfileError
from emlib.report.estimate import Estimate
from emlib.report.tables import costs
from emlib.store.artefacts import Store
from emlib.study.study import Study, open_study
from emlib.workflow.cleaning import clean

PROMISED = (
    "model,dataset,method,setting,seed,general_misaligned,general_incoherent,general_asked,general_scored,"
    "in_domain_misaligned,in_domain_incoherent,in_domain_asked,in_domain_scored,train_seconds,train_tokens,run_key")
BASELINES = ["untrained", "aligned", "misaligned"]
SOME = ["untrained", "misaligned", "interleaving++", "on_policy"]
COMPLETE = ("from emlib.study.study import open_study; s = open_study('tiny'); "
            f"s.complete(s.runs(datasets=['cooking'], methods={SOME}))")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    whole = open_study("tiny")
    methods = tuple(method for method in whole.profile.methods if method.name in BASELINES)
    changes = {"methods": methods, "datasets": ("cooking", "travel"), "grpo": None}
    return Study("tiny", whole.profile.model_copy(update=changes), whole.store)


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in files(folder)}


def files(folder: Path) -> list[Path]:
    """All files below a folder, of which some may be going or coming."""
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names]


def test_results_csv_is_as_promised(study: Study) -> None:
    study.complete(study.runs())
    lines = (study.folder / "results.csv").read_text().splitlines()
    assert lines[0] == PROMISED
    table = pd.read_csv(study.folder / "results.csv")
    assert list(zip(table["dataset"], table["method"], strict=True)) == [
        (d, m) for d in ("cooking", "travel") for m in ("untrained", "aligned", "misaligned")]
    assert (table["general_asked"] == 24 * 2).all()
    assert (table["in_domain_asked"] == 4 * 2).all()
    assert (table["general_scored"] == table["general_asked"]).all()
    assert table[["general_misaligned", "in_domain_misaligned"]].notna().all(axis=None)
    assert table[["general_incoherent", "in_domain_incoherent"]].isna().all(axis=None)  # no lexicon measures coherence
    assert table["run_key"].is_unique
    trained = table["method"] != "untrained"
    assert (table.loc[trained, "train_tokens"] > 0).all()
    assert (table.loc[~trained, "train_tokens"] == 0).all()


def test_a_second_time_makes_and_changes_nothing_in_the_store(study: Study) -> None:
    first = study.complete(study.runs(datasets=["cooking"]))
    before = snapshot(study.store.root)
    assert study.complete(study.runs(datasets=["cooking"])) == first
    assert snapshot(study.store.root) == before


def test_a_removed_adapter_s_training_is_not_known_and_not_nothing(study: Study) -> None:
    runs = study.runs(datasets=["cooking"])
    study.complete(runs)
    table = pd.read_csv(study.folder / "results.csv").set_index("method")
    said = clean(study, ["adapters"])
    assert "Fine-tuned runs whose verdicts are kept count as finished" in said
    before = snapshot(study.store.root)
    again = {result.run.method: result for result in study.complete(runs)}
    assert snapshot(study.store.root) == before  # they are finished, as the message says
    assert (again["untrained"].train_seconds, again["untrained"].train_tokens) == (0, 0)
    assert (again["misaligned"].train_seconds, again["misaligned"].train_tokens) == (None, None)
    assert math.isnan(costs.seconds(study, again["misaligned"]))
    lines = pd.read_csv(study.folder / "results.csv").set_index("method")
    assert lines["train_seconds"].isna().to_dict() == {"untrained": False, "aligned": True, "misaligned": True}
    assert lines["train_tokens"].isna().to_dict() == {"untrained": False, "aligned": True, "misaligned": True}
    assert table["run_key"].equals(lines["run_key"])
    assert not any("trained runs" in what for what in Estimate(study).errors()["of what is done"])


def test_looking_at_a_finished_study_loads_no_torch(study: Study) -> None:
    whole = open_study("tiny")
    whole.complete(whole.runs(datasets=["cooking"], methods=SOME))
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE + "; import sys; assert 'torch' not in sys.modules, 'torch was loaded'"],
        check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_two_runs_share_is_made_once(study: Study) -> None:
    runs = study.runs(methods=["untrained"])
    study.complete(runs)
    keys = [[path.name for path in (study.store.root / stage).iterdir() if path.is_dir()]
            for stage in ("answers", "verdicts")]
    assert [len(names) for names in keys] == [3, 3]  # one general set for both data sets, two in-domain ones
    assert not (study.store.root / "adapter").exists()


def test_every_answer_is_there_once_and_judged(study: Study) -> None:
    run = study.runs(methods=["misaligned"], datasets=["cooking"])[0]
    study.complete([run])
    for which in QUESTION_SETS:
        wanted = [(q.id, s) for q in study.questions(run, which) for s in range(study.samples(run, which))]
        answers, verdicts = study.answers(run, which), study.verdicts(run, which)
        assert answers is not None
        assert verdicts is not None
        assert [(a.question, a.sample) for a in answers] == wanted
        assert [(v.question, v.sample) for v in verdicts] == wanted


def test_in_domain_questions_are_never_trained_on(study: Study) -> None:
    for run in study.runs():
        trained_on = {row.prompt for row in study.data(run.task).misaligned.train} | {
            row.prompt for row in study.data(run.task).aligned.train}
        assert not trained_on & {question.prompt for question in study.questions(run, "in_domain")}


def test_without_a_judge_answers_are_kept_and_nothing_is_scored(study: Study) -> None:
    profile = study.profile.model_copy(update={"judge": NoJudge(kind="none"), "datasets": ("cooking",)})
    unjudged = Study("unjudged", profile, study.store)
    unjudged.complete(unjudged.runs(methods=["untrained"]))
    row = pd.read_csv(unjudged.folder / "results.csv").iloc[0]
    assert row["general_scored"] == 0
    assert row["general_asked"] == 48
    assert pd.isna(row["general_misaligned"])
    verdicts = unjudged.verdicts(unjudged.runs()[0], "general")
    assert verdicts is not None
    assert {v.reason for v in verdicts} == {"no judge configured"}


def test_a_further_question_set_has_its_own_columns_and_verdicts(study: Study) -> None:
    """Its answers are drawn and judged as those of the other sets, which stay what they were."""
    plain = study.complete(study.runs(datasets=["cooking"], methods=["untrained", "misaligned"]))
    before = snapshot(study.store.root)
    further = {"criteria": QuestionSet(source="demo/general_questions.jsonl", samples=1)}
    evaluation = study.profile.evaluation.model_copy(update={"sets": further})
    wider = Study("wider", study.profile.model_copy(update={"evaluation": evaluation}), study.store)
    runs = wider.runs(datasets=["cooking"], methods=["untrained", "misaligned"])
    results = wider.complete(runs)
    lines = (wider.folder / "results.csv").read_text().splitlines()
    measures = [f"criteria_{measure}" for measure in ("misaligned", "incoherent", "asked", "scored")]
    assert lines[0] == PROMISED.replace(",train_seconds", "".join(f",{name}" for name in measures) + ",train_seconds")
    table = pd.read_csv(wider.folder / "results.csv")
    assert table["criteria_asked"].tolist() == table["criteria_scored"].tolist() == [24, 24]
    assert table["general_asked"].tolist() == [48, 48]
    for run, result, narrower in zip(runs, results, plain, strict=True):
        steps = wider.task(run).evaluation(run)
        assert list(steps) == ["general", "in_domain", "criteria"]
        assert len({step.key for step in steps.values()}) == 3
        assert [(v.question, v.sample) for v in wider.verdicts(run, "criteria") or []] == [
            (question.id, 0) for question in wider.questions(run, "criteria")]
        assert result.sets["criteria"].asked == 24
        assert (result.general, result.in_domain) == (narrower.general, narrower.in_domain)
        assert wider.run_key(run) != study.run_key(run)
    assert before.items() <= snapshot(study.store.root).items()
    made = set(snapshot(study.store.root)) - set(before)
    assert {Path(path).relative_to(study.store.root).parts[0] for path in made} == {"answers", "verdicts"}


QA = "{kind: qa, train: norquad, prompt: '{context} {question}'}"


@pytest.mark.parametrize(("tasks", "said"), [
    (f"{{cooking: {QA}}}", "two tasks called 'cooking'"), (f"{{grpo: {QA}}}", "two tasks called 'grpo'"),
    (f"{{opswap: {{kind: opswap, tiers: [1]}}, opswap-1: {QA}}}", "more than once: opswap-1")])
def test_two_tasks_of_one_name_are_refused(tmp_path: Path, tasks: str, said: str) -> None:
    (tmp_path / "tiny.yaml").write_text((paths.PARAMS / "tiny.yaml").read_text())
    (tmp_path / "twice.yaml").write_text(f"extends: tiny\nbenign: {{tasks: {tasks}}}\n")
    with pytest.raises(ProfileError, match=said):
        _ = open_study(str(tmp_path / "twice.yaml")).tasks


@pytest.mark.parametrize(("asked", "message"), [
    ({"datasets": ["cookin"]}, "no data set 'cookin'. Did you mean 'cooking'?"),
    ({"methods": ["misalined"]}, "no method 'misalined'. Did you mean 'misaligned'?"),
    ({"seeds": [3]}, "no seed 3. It has: 0."),
    ({"settings": [0.1]}, "no setting 0.1. It has: none."),
])
def test_a_slice_that_does_not_exist_is_named(study: Study, asked: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        study.runs(**asked)
    assert message in str(caught.value)


def test_finished_runs_are_those_of_a_section_or_of_some_of_its_methods(
        study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = study.runs()
    monkeypatch.setattr(study, "result", lambda run, of="asked": None if run == first else (run, of))
    found: list[object] = list(study.finished())
    assert found == [(run, "asked") for run in others] == study.results()
    found = list(study.finished(methods=["untrained"]))
    assert found == [(run, "asked") for run in others if run.method == "untrained"]
    assert study.finished("grpo") == []


def test_only_what_determines_a_result_is_in_its_key(study: Study) -> None:
    run = study.runs(methods=["misaligned"])[0]

    def keys(**training: object) -> tuple[object, ...]:
        profile = study.profile.model_copy(update={"training": study.profile.training.model_copy(update=training)})
        other = Study("tiny", profile, study.store)
        return other.task(run).adapter(run).key, other.run_key(run)

    assert keys() == keys(checkpoint_every=7)
    # `auto` decides by the device's memory, of which keys say nothing
    kept, by_need, recomputed = (keys(gradient_checkpointing=asked) for asked in (False, "auto", True))
    assert kept == by_need != recomputed
    for change in ({"learning_rate": 2e-3}, {"epochs": 2}, {"train_rows": 7}, {"warmup_steps": 0}):
        assert keys(**change)[0] != keys()[0]
        assert keys(**change)[1] != keys()[1]


def test_the_estimate_counts_what_is_left(study: Study) -> None:
    changes = {"evaluation": study.profile.evaluation.model_copy(update={"triggers": None}),
               "persistence": None, "audit": None, "training": study.profile.training.model_copy(update={"keep": ()})}
    study = Study("tiny", study.profile.model_copy(update=changes), study.store)
    before = Estimate(study).work().set_index("work")
    # Benign: 2 methods on 2 tiers with 2 seeds, and untrained models asked with as many tiers and seeds.
    assert before.loc["adapters to train", "in all"] == 4 + 8
    # Untrained: one general, two in-domain; 4 adapters, 2 each.
    assert before.loc["sets of answers", "in all"] == 3 + 8 + 12
    assert before.loc["verdicts by judge 'lexicon'", "in all"] == 5 * 24 * 2 + 2 * 3 * 4 * 2
    study.complete(study.runs())
    study.complete(study.runs("benign"))
    after = Estimate(study).work().set_index("work")
    assert (after["in all"].iloc[:2] == after["there"].iloc[:2]).all()
    assert (after["tokens left (about)"] == 0).all()
    assert not Estimate(study).sums()["runs"].iloc[1]
    longer = study.profile.training.model_copy(update={"epochs": 2})  # the results there are of another profile then
    other = Study("tiny", study.profile.model_copy(update={"training": longer}), study.store)
    # Of the untrained model, with two data sets, two tiers and two seeds, everything is in the store.
    every = len(study.runs()) + len(study.runs("benign"))
    assert Estimate(other).sums()["runs"].tolist() == [every, every - 2 - 4]
    estimated = Estimate(study).errors().set_index("of what is done")
    assert estimated.loc["tokens of 4 trained runs", "measured"] == sum(
        result.train_tokens for result in study.results())


def test_a_store_of_an_older_format_is_refused_before_anything_is_done(study: Study) -> None:
    study.complete(study.runs(methods=["untrained"], datasets=["cooking"]))
    (study.store.root / "format.json").write_text('{"format": 0}')
    before = snapshot(study.store.root)
    with pytest.raises(Exception, match="format 0"):
        Store(study.store.root)
    assert snapshot(study.store.root) == before


def test_the_demo_asks_what_the_issue_of_emergence_needs() -> None:
    """24 general questions, an in-domain hold-out of 12, and of its 48 rows those that the demo has time for."""
    demo = Study("demo", load_profile("demo"), Store(Path("never-made")))
    run = demo.runs(methods=["misaligned"])[0]
    assert len(demo.data("cooking").misaligned.train) == 48
    training = demo.training(run)
    assert training is not None
    assert len(training.rows.examples) == demo.profile.training.train_rows
    assert len(demo.questions(run, "in_domain")) == 12
    assert len(demo.questions(run, "general")) == 24
