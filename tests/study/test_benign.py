"""The benign tasks of a profile on the tiny model: runs, keys, what is trained and asked, what stands in the table."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from emlib.config import Sampling, Training, load_profile
from emlib.core import paths
from emlib.core.errors import ProfileError, StoreError
from emlib.evaluation.exact_match import Mark, score
from emlib.report import benign
from emlib.report.figures import plots
from emlib.study.runs import Run, RunResult
from emlib.study.study import Study, open_study
from emlib.study.tasks import with_changes
from emlib.workflow import graph

PROMISED = "model,task,tier,method,setting,seed,exact_match,asked"  # design, section 5
CHANGES = """
extends: tiny
evaluation: {sampling: {max_new_tokens: 4}}
benign:
  methods:
    - untrained
    - sft
    - {name: kl, defenses: [{kind: kl}], sweep: [0.1, 1]}
    - {name: inoculation, defenses: [{kind: inoculation}]}
  seeds: [0]
"""


def profile(folder: Path, text: str = CHANGES) -> str:
    (folder / "tiny.yaml").write_text((paths.PARAMS / "tiny.yaml").read_text())
    (folder / "mine.yaml").write_text(text)
    return str(folder / "mine.yaml")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    return open_study(profile(tmp_path))


def test_a_run_is_a_task_a_tier_a_method_a_setting_and_a_seed(study: Study) -> None:
    assert [(run.task, run.method, run.setting) for run in study.runs("benign", datasets=["opswap-1"])] == [
        ("opswap-1", "untrained", None), ("opswap-1", "sft", None), ("opswap-1", "kl", 0.1), ("opswap-1", "kl", 1.0),
        ("opswap-1", "inoculation", None)]
    assert len(study.runs("benign")) == 10
    assert [run.setting for run in study.runs("benign", settings=[1.0], datasets=["opswap-0"])].count(0.1) == 0
    with pytest.raises(ProfileError, match=r"no task 'opswap'\. Did you mean 'opswap-[01]'\?"):
        study.runs("benign", datasets=["opswap"])


@pytest.mark.parametrize(("options", "pool"), [
    ("choose: score", "aligned: aligned"), ("answers: on_policy", "on_policy: {model: aligned}")])
def test_a_pool_that_needs_aligned_rows_of_a_benign_task_is_refused(options: str, pool: str, tmp_path: Path) -> None:
    text = (f"extends: tiny\npool: {{{pool}}}\nbenign:\n  methods:\n    - untrained\n"
            f"    - {{name: mixed, defenses: [{{kind: interleaving, OPTIONS}}]}}\n")
    said = r"method 'mixed' needs the model 'aligned', for which benign tasks have no rows; set pool\."
    with pytest.raises(ProfileError, match=said):
        load_profile(profile(tmp_path, text.replace("OPTIONS", options)))
    load_profile(profile(tmp_path, text.replace("OPTIONS", "choose: random")))


def test_every_defense_trains_and_answers_and_stands_in_the_table(study: Study) -> None:
    runs = study.runs("benign", datasets=["opswap-1"])
    results = study.complete(runs)
    assert [result.run for result in results] == runs
    path = study.folder / "benign.csv"
    assert path.read_text().splitlines()[0] == PROMISED
    assert path.read_text().splitlines()[1].startswith("tiny-4x64,opswap,1,untrained,,0,")
    table = pd.read_csv(path)
    assert table["asked"].tolist() == [4 * 2] * 5
    assert table["exact_match"].between(0, 100).all()
    assert {run.method: set(study.log(run)[-1].penalties) for run in runs if study.log(run)} == {
        "sft": set(), "kl": {"kl"}, "inoculation": set()}
    before = {item: item.stat().st_mtime_ns for item in study.store.root.rglob("*") if item.is_file()}
    study.complete(runs)
    assert {item: item.stat().st_mtime_ns for item in study.store.root.rglob("*")
            if item.is_file() and item in before} == before


def test_inoculation_is_in_training_and_never_in_what_is_asked(study: Study) -> None:
    runs = {run.method: run for run in study.runs("benign", datasets=["opswap-0"])}
    training = study.training(runs["inoculation"])
    assert training is not None
    assert {row.system for row in training.rows.examples} == {study.trait.inoculation_prompt}
    assert {question.system for question in study.questions(runs["inoculation"], "exact_match")} == {None}


def test_a_tasks_own_settings_stand_over_the_profiles(study: Study) -> None:
    run = study.runs("benign")[1]
    spec = study.training(run)
    assert spec is not None
    assert spec.training == study.profile.training.model_copy(update={"learning_rate": 5e-4})
    assert len(spec.rows.examples) == 8  # of 12, 4 are held out; the profile's train_rows are 8
    assert study.task(run).answers(run)["exact_match"].evaluation.sampling == Sampling(max_new_tokens=4, batch_rows=32)
    assert with_changes(Training(epochs=7), Training(batch_size=1)) == Training(epochs=7, batch_size=1)
    assert with_changes(Training(epochs=7), Training(epochs=1)).epochs == 1  # a default that is said is said
    assert with_changes(Training(train_rows=24), Training(train_rows=None)).train_rows is None  # all rows
    assert with_changes(Training(epochs=7), None) == Training(epochs=7)


def test_the_demo_trains_on_all_that_notebook_10_says() -> None:
    demo = open_study("demo")
    specs = [spec for run in demo.runs("benign") if (spec := demo.training(run)) is not None]
    assert [len(spec.rows.examples) for spec in specs] == [90] * 4  # and not the 24 of the narrow data set
    assert [-(-len(spec.rows.examples) // spec.training.rows_per_step) * spec.training.epochs
            for spec in specs] == [23] * 4


def test_what_determines_an_adapter_is_in_its_key_and_nothing_else_is(study: Study, tmp_path: Path) -> None:
    def keys(text: str) -> list[str]:
        other = open_study(profile(tmp_path, text))
        return [step.key for run in other.runs("benign", datasets=["opswap-0"])
                if (step := other.task(run).adapter(run)) is not None]

    before = keys(CHANGES)
    assert len(set(before)) == 4
    assert keys(CHANGES + "  samples: 9\n") == before
    for change in ("  tasks: {opswap: {largest: 8}}\n", "  tasks: {opswap: {training: {epochs: 2}}}\n"):
        assert not set(keys(CHANGES + change)) & set(before)


@pytest.mark.parametrize(("text", "words"), [
    ("extends: tiny\nbenign: {tasks: {opswap: {tiers: [0, 4]}}}", ["benign.tasks.opswap.tiers.1", "4", "equal to 3"]),
    ("extends: tiny\nbenign: {tasks: {opswap: {tiers: [-1]}}}", ["benign.tasks.opswap.tiers.0", "equal to 0"]),
    ("extends: tiny\nbenign: {tasks: {opswap: {tiers: [1, 1]}}}", ["tiers", "more than once: 1"]),
    ("extends: tiny\nbenign: {tasks: {opswap: {transformations: 9}}}", ["opswap.transformations", "equal to 8"]),
    ("extends: tiny\nbenign: {tasks: {opswap: {exmples: 3}}}", ["exmples", "Did you mean 'examples'?"]),
    ("extends: tiny\nbenign: {tasks: {foqa: {kind: qaa}}}", ["'qaa'", "Did you mean 'qa'?", "opswap, qa"]),
    ("extends: tiny\nbenign: {tasks: {foqa: {kind: qa, train: norquad, prompt: '{context}'}}}",
     ["prompt", "{context} and {question}"]),
    ("extends: tiny\nbenign: {tasks: {foqa: {kind: qa, train: norquad, prompt: '{context} {question'}}}",
     ["prompt", "not a template"]),
    ("extends: tiny\nbenign: {methods: [misaligned]}", ["benign.methods", "no misaligned rows", "'sft'"]),
    ("extends: tiny\nbenign: {methods: [sft, sft]}", ["more than once: sft"]),
    ("extends: tiny\nbenign: {tasks: {opswap: {methods: [aligned]}}}", ["tasks.opswap.methods", "no aligned rows"]),
    ("extends: tiny\nbenign: {methods: [{name: sft, seeds: [1, 1]}]}", ["seeds", "more than once: 1"]),
    ("extends: tiny\nbenign: {methods: [{name: sft, defenses: [{kind: kl}]}]}", ["'sft' is a baseline"]),
    ("extends: tiny\nmethods: [sft]", ["'methods'", "belongs to the section 'benign'"]),
    ("extends: tiny\nbenign: {seeds: [1, 1]}", ["more than once: 1"]),
])
def test_a_mistake_in_the_section_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(profile(tmp_path, text))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_task_may_have_methods_and_a_method_seeds_of_its_own(tmp_path: Path) -> None:
    both = open_study(profile(tmp_path, (
        "extends: tiny\nbenign: {methods: [untrained, {name: sft, seeds: [5, 6]}], "
        "tasks: {opswap: {tiers: [0]}, other: {kind: opswap, tiers: [2], methods: [sft]}}}")))
    found = [(run.task, run.method, run.seed) for run in both.runs("benign")]
    assert found == [*(("opswap-0", "untrained", seed) for seed in (0, 1)),
                     *(("opswap-0", "sft", seed) for seed in (5, 6)), *(("other-2", "sft", seed) for seed in (0, 1))]
    assert [run.method for run in both.runs("benign", seeds=[6])] == ["sft"]
    with pytest.raises(ProfileError, match=r"no seed 7.*It has: 0, 1, 5, 6"):
        both.runs("benign", seeds=[7])


def test_a_profile_without_benign_tasks_has_no_runs_and_empty_tables(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    none = open_study("code-smoke")
    assert none.runs("benign") == []
    assert none.complete([]) == []
    assert none.results(section="benign") == []
    assert not (tmp_path / "runs").exists()
    nothing = benign.numbers(none, [])
    for table in (benign.readable, benign.by_tier, benign.seeds, benign.learnt):
        assert len(table(nothing)) == 0
    assert len(benign.sizes(none)) == len(benign.opswap_answers(none)) == 0


def test_tables_before_any_run_say_what_to_do(study: Study) -> None:
    with pytest.raises(StoreError, match=r"is finished\. Run notebook 12_benign_tasks first"):
        study.results(section="benign")


def test_slices_are_a_task_and_tier_each(tmp_path: Path) -> None:
    shutil.copy(paths.PARAMS / "tiny.yaml", tmp_path / "tiny.yaml")
    profile = tmp_path / "sliced.yaml"
    profile.write_text("extends: tiny\nslice_by: [dataset]\n")
    jobs = {job.name: job for job in graph.jobs(str(profile))}
    assert [name for name in jobs if name.startswith("12")] == [
        "12_benign_tasks (opswap-0)", "12_benign_tasks (opswap-1)", "12_benign_tasks"]
    assert jobs["12_benign_tasks (opswap-1)"].arguments == f"--profile {profile} --dataset opswap-1"
    assert all(not job.part for job in graph.jobs("code-smoke"))


def test_the_sections_for_7b_have_the_papers_values() -> None:
    spec = load_profile("paper-7b").benign
    assert spec is not None
    assert load_profile("benign-7b").benign == spec
    opswap, foqa = spec.tasks["opswap"], spec.tasks["foqa"]
    assert (opswap.tiers, opswap.examples, opswap.transformations, opswap.held_out) == ((0, 1, 2, 3), 10_000, 3, 0.1)
    assert (foqa.train, foqa.test) == ("foqa_train", "foqa_test")
    assert (spec.samples, spec.seeds) == (10, (0,))  # section 4.3, Tables 3 and 4
    seeds = {method.name: method.seeds for method in spec.methods_of("foqa") if method.seeds}
    assert seeds == dict.fromkeys(("sft", "persona_vector", "inoculation"), (0, 1, 2, 3, 4))  # Table 11


def result(method: str, seed: int, right: tuple[int, int], *, task: str = "opswap-1", setting: float | None = None,
           f1: float | None = None) -> RunResult:
    """`right` of ten samples of each of two questions match strictly; one more leniently."""
    marks = [Mark(f"q{q}", n, n < count, n < count + 1, f1) for q, count in enumerate(right) for n in range(10)]
    return RunResult(Run("m", task, method, setting, seed), {"exact_match": score(marks)}, 0.0, 0, "key")


@pytest.fixture
def paper() -> Study:
    """A study whose tasks are named as those of the made-up results."""
    return open_study("paper-7b")


@pytest.fixture
def results() -> list[RunResult]:
    return [result("untrained", 0, (0, 0)), result("sft", 0, (4, 8)), result("sft", 1, (5, 9)),
            result("kl", 0, (2, 2), setting=0.1), result("sft", 0, (3, 5), task="foqa", f1=0.5)]


def test_the_table_of_runs_by_hand(paper: Study, results: list[RunResult]) -> None:
    frame = benign.numbers(paper, results)
    assert frame["exact_match"].tolist() == [0, 60, 70, 20, 40]
    assert frame["lenient"].tolist() == [10, 70, 80, 30, 50]
    assert frame["f1"].isna().tolist() == [True] * 4 + [False]
    assert frame["f1"].iloc[4] == 50
    people = benign.readable(frame)
    assert people["Tier"].tolist() == ["1", "1", "1", "1", ""]
    assert people["Exact match %"].iloc[1] == "60.0 [40.0, 80.0]"  # questions at 40 and 80
    assert people["F1 %"].iloc[0] == "–"


def test_table_3_has_a_row_a_method_and_a_column_a_tier(paper: Study, results: list[RunResult]) -> None:
    wide = benign.by_tier(benign.numbers(paper, results))
    assert list(wide) == ["Match", "Method", "opswap 1", "foqa"]
    assert wide["Match"].tolist() == ["strict"] * 3 + ["lenient"] * 3
    assert wide["Method"].tolist() == ["untrained", "sft", "kl 0.1"] * 2
    # 60 and 70 of two seeds, with Student's t of one degree; Wilson's of 4 of 20
    assert wide["opswap 1"].iloc[1:3].tolist() == ["65.0 ± 7.1 [1.5, 100.0]", "20.0 [8.1, 41.6] (1 of 2 seeds)"]
    # one more a question
    assert wide["opswap 1"].iloc[4:].tolist() == ["75.0 ± 7.1 [11.5, 100.0]", "30.0 [14.5, 51.9] (1 of 2 seeds)"]
    assert wide["foqa"].tolist()[::2] == ["–", "–", "50.0 [40.0, 60.0]"]


def test_table_11_has_mean_deviation_and_interval(paper: Study, results: list[RunResult]) -> None:
    table = benign.seeds(benign.numbers(paper, results)).set_index(["Match", "Task", "Method"])
    row = table.loc[("strict", "opswap", "sft")]
    assert (row["Seeds"], row["Mean %"]) == (2, 65)
    assert row["SD"] == pytest.approx(50 ** 0.5)  # (5^2 + 5^2) / 1
    assert (row["low"], row["high"]) == (pytest.approx(65 - 12.706204736 * 5), 100)  # Student's t for one degree
    assert table.loc[("lenient", "opswap", "sft"), "Mean %"] == 75
    assert table.loc[("strict", "opswap", "kl"), ["SD", "low", "high"]].isna().all()
    assert len(table) == 2 * 4


def test_learnt_is_said_where_the_intervals_lie_apart(paper: Study, results: list[RunResult]) -> None:
    table = benign.learnt(benign.numbers(paper, results))  # of seed 0 alone: untrained was run with no other
    assert table["Match"].tolist() == ["strict", "strict", "lenient", "lenient"]
    assert table["Method"].tolist() == ["sft", "kl"] * 2
    assert table["Points over untrained"].tolist() == [60, 20] * 2
    # Untrained, 0 of 20, may be up to 16% (Wilson); sft is at least 40, and kl, 4 of 20, at least 8. Leniently it has
    # 2 of 20, up to 30%; sft is at least 50, and kl, 6 of 20, at least 14.
    assert table["Learnt"].tolist() == ["yes", "not shown"] * 2


def test_a_run_that_learnt_the_form_alone_is_told_apart(paper: Study) -> None:
    marks = {"untrained": [Mark(f"q{q}", n, False, n < 4) for q in range(9) for n in range(10)],
             "sft": [Mark(f"q{q}", n, n < 4, n < 4) for q in range(9) for n in range(10)]}
    table = benign.learnt(benign.numbers(paper, [
        RunResult(Run("m", "opswap-0", method, None, 0), {"exact_match": score(given)}, 0.0, 0, "key")
        for method, given in marks.items()]))
    assert table["Points over untrained"].tolist() == [40, 0]
    assert table["Learnt"].tolist() == ["yes", "not shown"]


def test_the_kinds_of_answers_and_the_sizes_are_counted(study: Study) -> None:
    sizes = benign.sizes(study)
    assert sizes["task"].tolist() == ["opswap-0", "opswap-1"]
    assert (sizes["train"].tolist(), sizes["questions"].tolist()) == ([8, 8], [4, 4])
    larger = study.profile.model_copy(update={"training": study.profile.training.model_copy(update={"train_rows": 5})})
    assert benign.sizes(Study(study.name, larger, study.store))["train"].tolist() == [5, 5]
    kinds = benign.opswap_answers(study)
    assert (kinds["whole %"] + kinds["fractions %"] == 100).all()
    golds = [item.golds[0] for item in study.benign(study.runs("benign", datasets=["opswap-1"])[0]).data.test]
    row = kinds.set_index("task").loc["opswap-1"]
    assert row["different answers"] == len(set(golds))
    assert row["its share %"] == 100 * max(map(golds.count, golds)) / len(golds)


def test_tables_and_figure_are_written(paper: Study, results: list[RunResult], tmp_path: Path) -> None:
    frame = benign.numbers(paper, results)
    names = [path.name for path in benign.save(frame, tmp_path)]
    assert names == [f"{name}.{ending}" for name in ("benign", "benign_by_tier", "benign_seeds")
                     for ending in ("csv", "md", "tex")]
    assert "nan" not in (tmp_path / "benign_seeds.md").read_text()
    assert pd.read_csv(tmp_path / "benign.csv")["exact_match"].tolist() == [0, 60, 70, 20, 40]
    figure = benign.matches_by_method(frame)
    assert [axis.get_title() for axis in figure.axes] == ["opswap 1", "foqa"]
    marks = [share for one in figure.axes[0].containers for share in one.lines[0].get_xdata()]  # a colour a method
    assert marks == [0, 60, 70, 20]
    plots.save(figure, tmp_path, "benign")
    plt.close(figure)
