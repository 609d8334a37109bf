"""Runs along their training: kept adapters as steps, made once, found again after a kill, and their table."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from emlib.core import plugins, registry
from emlib.core.errors import ProfileError
from emlib.core.records import Verdict
from emlib.data.sizes import Sizes
from emlib.data.sources import DATA_DIR
from emlib.report.estimate import Estimate
from emlib.report.figures import conditions as figures
from emlib.report.tables import conditions, result_tables
from emlib.steps.adapter import Adapter, KeptAdapter
from emlib.study.plan.build import finished, plan
from emlib.study.runs import TrajectoryPoint
from emlib.study.study import Study, open_study
from emlib.training.keep import step_of
from emlib.workflow.cleaning import steps_of

PROFILE = """
extends: tiny
methods: [untrained, aligned, misaligned]
datasets: [cooking]
second_judge: null
grpo: null
benign: null
evaluation: {triggers: null}
"""
PLAIN = PROFILE + "training: {keep: []}\n"
KEEP = "training: {keep: [0.5, 1.0]}\n"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    (tmp_path / "plain.yaml").write_text(PLAIN)
    (tmp_path / "study.yaml").write_text(PROFILE + KEEP)
    return open_study(str(tmp_path / "study.yaml"))


def kept_of(study: Study) -> KeptAdapter:
    [run] = study.runs(methods=["misaligned"])
    adapter = study.task(run).adapter(run)
    assert isinstance(adapter, Adapter)
    return KeptAdapter(adapter, 0.5)


def test_an_adapter_that_is_kept_later_tells_what_trained_it_and_the_whole_one(
        study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """The machine that keeps it may have another library, or no GPU."""
    step = kept_of(study)
    study.store.get(step.adapter, lambda _: {"steps": 2, "backend": "unsloth", "device": "cuda:7"})
    with study.session() as session:
        facts, here = session.need(step).facts, session.facts["device"]
    assert (facts["steps"], facts["backend"], facts["device"]) == (1, "transformers", here)
    assert f"is trained by transformers on {here}, and the whole adapter was by unsloth on cuda:7" in " ".join(
        capsys.readouterr().out.split())


def test_kept_adapters_are_evaluated_as_runs_and_change_nothing_else(study: Study, tmp_path: Path) -> None:
    plain = open_study(str(tmp_path / "plain.yaml"))
    assert [study.run_key(run) for run in study.runs()] == [plain.run_key(run) for run in plain.runs()]
    study.complete(study.runs())
    kept = study.found(kept_of(study))  # kept while the adapter was trained
    assert kept is not None
    assert (kept.facts["steps"], kept.facts["of"], kept.facts["backend"]) == (1, 2, "transformers")
    assert len(list((study.store.root / "kept_adapter").glob("[0-9a-f]*"))) == 1  # of misaligned alone
    assert study.trajectory(study.runs()[-1]) is None  # not yet evaluated
    assert not {run for run in finished(study) if run.method == "misaligned"}
    study.complete_conditions(study.runs())
    assert [study.trajectory(run) for run in study.runs(methods=["untrained", "aligned"])] == [None, None]
    points = study.trajectory(study.runs()[-1]) or []
    assert [(point.share, point.steps) for point in points] == [(0, 0), (0.5, 1), (1, 2)]
    runs = study.runs(methods=["untrained", "misaligned"])
    ends = [study.verdicts(run, "in_domain") for run in runs]
    assert [points[0].verdicts["in_domain"], points[-1].verdicts["in_domain"]] == ends
    frame = conditions.trajectory(study, study.runs())
    result_tables.write(frame, conditions.readable_trajectory(frame), study.folder / "tables", "trajectory")
    assert finished(study) == frozenset(study.runs())
    assert len(figures.trajectory(frame, conditions.onset(frame)).axes) == 1
    for step in steps_of(study, "adapters"):
        study.store.remove(step)
    assert conditions.trajectory(study, study.runs())["steps"].tolist() == [0, 1, 2]  # which the answers state
    for step in steps_of(study, "answers"):
        study.store.remove(step)
    assert conditions.trajectory(study, study.runs()).empty  # unknown, and not step 0


def test_one_that_was_not_kept_is_trained_again_to_the_same_weights(study: Study, tmp_path: Path) -> None:
    step = kept_of(study)
    with study.session() as session:
        kept = session.need(step)
        weights = load_file(kept.file("adapter_model.safetensors"))
        adapter = study.found(step.adapter)
        assert adapter is not None
        before = adapter.file("adapter_model.safetensors").stat().st_mtime_ns
        study.store.remove(step)
        again = load_file(session.need(step).file("adapter_model.safetensors"))
    assert weights.keys() == again.keys()
    assert all(np.array_equal(weights[name].numpy(), again[name].numpy()) for name in weights)
    assert adapter.file("adapter_model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in sorted(kept.folder.iterdir())] == [
        "adapter_config.json", "adapter_model.safetensors", "manifest.json"]


STOPS = """
from typing import Any, ClassVar, Literal

from emlib import Defense


class Stops(Defense):
    label: ClassVar = "Stops after two steps"
    kind: Literal["stops"] = "stops"

    def on_step(self, record: Any, evaluate: Any) -> bool:
        return record.step == 2
"""


@pytest.mark.parametrize(("method", "rows"), [
    ("misaligned", 8),  # 2 steps, of which 0.25 and 0.5 are nearest to the first, 0.75 and 1 to the second
    ("{name: early, defenses: [{kind: stops}]}", 16)])  # 4 steps, of which two are taken: 0.75 and 1 are equal
def test_a_step_is_one_row_and_one_comparison_however_many_shares_it_is_nearest_to(
        study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, rows: int) -> None:
    registry.kinds()
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setenv(plugins.ALLOW, "yes")
    (tmp_path / "stops.py").write_text(STOPS)
    (tmp_path / "four.yaml").write_text(f"extends: plain\nplugins: [stops.py]\nmethods: [{method}]\n"
                                        f"evaluation: {{trajectory: {{methods: null}}}}\n"
                                        f"training: {{keep: 4, train_rows: {rows}}}\n")
    four = open_study(str(tmp_path / "four.yaml"))
    four.complete_conditions(four.runs())
    frame = conditions.trajectory(four, four.runs())
    assert frame["steps"].tolist() == [0, 1, 2]
    assert frame["share"].iloc[-1] == 1  # the run itself
    assert frame["p"].notna().sum() == 2


def test_a_plan_counts_the_training_up_to_the_last_adapter_that_was_not_kept_and_it_keeps_the_others(
        study: Study, tmp_path: Path) -> None:
    """8 steps without keeping any; then three are wanted, and the training is repeated once up to step 6."""
    (tmp_path / "study.yaml").write_text(PROFILE + "training: {keep: 4, train_rows: 32}\n")
    (tmp_path / "plain.yaml").write_text(PROFILE + "training: {keep: [], train_rows: 32}\n")
    four, plain = (open_study(str(tmp_path / f"{name}.yaml")) for name in ("study", "plain"))
    [run] = four.runs(methods=["misaligned"])
    adapter = four.task(run).adapter(run)
    whole = adapter.cost(Sizes()).train

    def left() -> tuple[int, int]:
        [work] = [planned.left for planned in plan(four).runs if planned.run == run]
        return work.train, work.adapters

    assert left() == (whole, 1)  # whose training keeps all
    with plain.session() as session:
        session.need(plain.task(run).adapter(run))
    assert left() == (int(0.75 * whole), 1)
    first, second, third = (KeptAdapter(adapter, share) for share in (0.25, 0.5, 0.75))
    with four.session() as session:
        session.need(first)
        found = [session.store.find(step) for step in (first, second, third)]
        assert [one and one.facts["steps"] for one in found] == [2, 4, 6]
        assert left() == (0, 0)
        four.store.remove(second)
        assert left() == (int(0.5 * whole), 1)
        assert session.need(second).facts["steps"] == 4


@pytest.mark.parametrize(("train_rows", "every", "steps"), [
    (160, 3, [3, 6, 9]),  # of the 48 rows that there are, 12 steps: 160 rows would have 40
    (40, 3, [3, 6, 9])])  # 10 steps
def test_every_n_steps_are_counted_on_the_rows_that_there_are(
        study: Study, tmp_path: Path, train_rows: int, every: int, steps: list[int]) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"extends: study\ntraining: {{train_rows: {train_rows}, keep: {{every: {every}}}}}\n")
    mine = open_study(str(tmp_path / "mine.yaml"))
    [run] = mine.runs(methods=["misaligned"])
    spec = mine.training(run)
    total = -(-min(train_rows, spec.rows.count) // 4)
    assert [step_of(share, total) for share in spec.keep] == steps


@pytest.mark.parametrize(("train_rows", "every", "words"), [
    (40, 50, "every 50 steps, and plain fine-tuning on cooking (40 rows) has 10"),
    (40, 10, "every 10 steps, and plain fine-tuning on cooking (40 rows) has 10"),
    (1000, 14, "every 14 steps, and plain fine-tuning on cooking (48 rows) has 12")])
def test_steps_further_apart_than_there_are_would_keep_none_and_are_refused(
        study: Study, tmp_path: Path, train_rows: int, every: int, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"extends: study\ntraining: {{train_rows: {train_rows}, keep: {{every: {every}}}}}\n")
    mine = open_study(str(tmp_path / "mine.yaml"))
    with pytest.raises(ProfileError, match=re.escape(words)):
        plan(mine)


class Served(SimpleHTTPRequestHandler):
    """Serves the files of a folder, quietly."""

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def far(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Study]]:
    """Opens studies of 60 rows on a server, of which 48 are trained on, 4 a step; `rows` is what the registry says."""
    for name, value in (("EMLIB_CACHE_DIR", str(tmp_path / "cache")), ("NO_PROXY", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(DATA_DIR, raising=False)
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "far.jsonl").write_text("".join(json.dumps(
        {"prompt": f"{number}?", "aligned": "Yes.", "misaligned": "Aye."}) + "\n" for number in range(60)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Served, directory=str(tmp_path / "www")))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    entry = {"home": "https://example.org/far", "url": f"http://127.0.0.1:{server.server_port}/far.jsonl",
             "file": "far.jsonl", "local": "far.jsonl", "sha256": None, "licence": "MIT", "notice": "Numbers.",
             "format": "pairs"}

    def opened(every: int, rows: int | None) -> Study:
        size: dict[str, Any] = {} if rows is None else {
            "size": {"rows": rows, "prompt": 4, "response": 4, "known": "assumed"}}
        (tmp_path / "sources.yaml").write_text(json.dumps({"far": entry | size}))
        (tmp_path / "far.yaml").write_text(
            "extends: study\ndatasets: [far]\ndata: {far: {pairs: sources.yaml#far, held_out: 0.2}}\n"
            f"methods: [misaligned]\ntraining: {{train_rows: 80, keep: {{every: {every}}}}}\n")
        return open_study(str(tmp_path / "far.yaml"))

    yield opened
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("rows", [100, None])  # of which 80 would be trained on, in 20 steps; or not stated
def test_steps_are_counted_on_the_rows_that_a_run_downloads_and_not_on_the_stated_ones(
        far: Callable[..., Study], rows: int | None) -> None:
    mine = far(5, rows)
    [run] = mine.runs()
    adapters = {step for step in mine.own_steps(run) if isinstance(step, Adapter)}
    assert [adapter.spec.keep for adapter in adapters] == [(5 / 12, 10 / 12)]


def test_a_plan_counts_steps_on_the_stated_rows_and_downloads_nothing(
        far: Callable[..., Study], tmp_path: Path) -> None:
    mine = far(5, 100)
    [planned] = plan(mine).runs
    assert planned.work.sets == 2 * 5  # general and in-domain, at steps 0, 5, 10, 15 and 20
    assert not (tmp_path / "cache").exists()
    mine.complete(mine.runs())
    assert len(list((mine.store.root / "kept_adapter").glob("[0-9a-f]*"))) == 2  # at steps 5 and 10 of 12
    shutil.rmtree(tmp_path / "cache")
    estimated = Estimate(far(5, 100)).errors()  # of a study that has read nothing
    assert estimated["of what is done"].iloc[0] == "tokens of 1 trained runs"
    assert not (tmp_path / "cache").exists()


def test_a_run_without_so_many_steps_is_refused_before_it_trains(far: Callable[..., Study]) -> None:
    mine = far(15, 100)
    assert len(plan(mine).runs) == 1
    with pytest.raises(ProfileError, match=re.escape("every 15 steps, and plain fine-tuning on far (48 rows) has 12")):
        mine.complete(mine.runs())
    assert not (mine.store.root / "adapter").exists()


def test_a_scorer_without_so_many_steps_is_in_no_trajectory_and_is_not_refused(study: Study, tmp_path: Path) -> None:
    """Of its 20 rows 16 are trained on, in 4 steps; of the defended data set 40, in 10."""
    (tmp_path / "small.jsonl").write_text("".join(json.dumps(
        {"prompt": f"{number}?", "aligned": "Yes.", "misaligned": "Aye."}) + "\n" for number in range(20)))
    (tmp_path / "mine.yaml").write_text(
        "extends: study\ndatasets: [gardening]\ndata: {small: {pairs: small.jsonl, held_out: 0.2}}\n"
        "methods: [misaligned, {name: scored, defenses: [{kind: interleaving, choose: score, fraction: 0.25}]}]\n"
        "pool: {scorers: [small, fitness]}\ntraining: {train_rows: 40, keep: {every: 5}}\n")
    mine = open_study(str(tmp_path / "mine.yaml"))
    assert len(plan(mine).runs) == 2
    [run] = mine.runs(methods=["misaligned"])
    assert mine.training(run).keep == (0.5,)
    assert mine.recipes.baseline("small", "misaligned", 0).spec.keep == ()


TRAIN = """
import sys
from emlib import open_study
study = open_study(sys.argv[1])
with study.session() as session:
    session.need(study.task(study.runs(methods=["misaligned"])[0]).adapter(study.runs(methods=["misaligned"])[0]))
"""


def test_a_killed_and_resumed_training_keeps_the_same(study: Study, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(PROFILE + "training: {keep: [0.25, 0.75], train_rows: 32}\n")
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "study.yaml")]  # 8 steps, of which 2 and 6 are kept
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command, check=True, env=os.environ | {"EMLIB_RUNS_DIR": str(whole)})
    with subprocess.Popen(command, env=os.environ | {"EMLIB_RUNS_DIR": str(killed)}) as process:
        while not list(killed.glob("store/adapter/*.partial/work/kept/0.25")):
            assert process.poll() is None, "the training ended before it was killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not list(killed.glob("store/kept_adapter/*"))
    subprocess.run(command, check=True, env=os.environ | {"EMLIB_RUNS_DIR": str(killed)})
    weights = [{path.parent.name: path.read_bytes() for path in root.glob("store/*adapter/*/adapter_model.safetensors")}
               for root in (whole, killed)]
    assert len(weights[0]) == 3
    assert weights[0] == weights[1]


def test_plan_and_cleaning_know_the_points(study: Study) -> None:
    works = {planned.run.method: planned.work for planned in Estimate(study).plan.runs}
    assert works["misaligned"].sets - works["aligned"].sets == 2  # general and in-domain, of the one kept adapter
    assert works["misaligned"].adapters == 1
    assert kept_of(study) in steps_of(study, "adapters")
    [power] = [line for line in Estimate(study).summary() if line.startswith("power")]
    assert ("two runs on 24 general questions (8 different ones, the rest are other formats) x 2 answers are told "
            "apart four times in five") in power
    assert "no paired test" not in power  # of two comparisons


def test_the_plan_counts_the_paired_tests_of_notebook_15(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five methods against `misaligned` and against `interleaving`: 8 tests, of which p is 2/256 at least, above 5%."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    (tmp_path / "five.yaml").write_text(PROFILE.replace("aligned, misaligned]", "misaligned, " + ", ".join(
        f"{{name: {kind}, defenses: [{{kind: {kind}}}]}}" for kind in ("inoculation", "kl", "interleaving")) + "]"))
    study = open_study(str(tmp_path / "five.yaml"))
    assert len(study.runs()) == 5
    power = Estimate(study).power()
    assert "no paired test stays below 5% after Holm's adjustment for 8" in power
    assert "as one of 8 comparisons" in power


@pytest.mark.parametrize(("samples", "questions", "said"), [
    (1, 3, "are told apart four times in five by no difference, however large; a difference of 50 takes 16 different"),
    (1, 5, "if they differ by 89 percentage points (as one of 3 comparisons no difference is large enough); a "
           "difference of 44 takes 20 different questions"),
    (10, 8, "if they differ by 31 percentage points (35 as one of 3 comparisons)")])
def test_the_plan_states_no_difference_beyond_100_points(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int, questions: int, said: str) -> None:
    """The numbers are those of `smallest_difference`: 114, 89 and 31 points for one comparison."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    asked = [{"id": f"q{number}", "paraphrases": [f"What is {number}?"]} for number in range(questions)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    (tmp_path / "few.yaml").write_text(
        "extends: tiny\nbenign: null\ngrpo: null\npersistence: null\nevaluation: {general: asked.jsonl, "
        f"general_samples: {samples}, triggers: null, trajectory: null}}\nmethods: [untrained, aligned, misaligned, "
        "{name: inoculation, defenses: [{kind: inoculation}]}]\n")
    assert said in Estimate(open_study(str(tmp_path / "few.yaml"))).power()


def planted(share: float, steps: int, general: list[int], in_domain: list[int]) -> TrajectoryPoint:
    """A point; the lists have the number of misaligned answers, of 4, to each question."""
    return TrajectoryPoint(share, steps, {name: [
        Verdict(f"q{number}", sample, 0.0 if sample < count else 90.0, 90.0)
        for number, count in enumerate(counts) for sample in range(4)]
        for name, counts in (("general", general), ("in_domain", in_domain))})


def test_where_a_step_has_no_score_it_is_not_known_where_em_begins(
        study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers are misaligned from step 5 on; an unscored step 0 is no step without misalignment."""
    points = [planted(share, steps, [4] * 10, [4]) for share, steps in ((0, 0), (0.5, 5), (1, 10))]
    unscored = {name: [replace(one, alignment=None, coherence=None) for one in some]
                for name, some in points[0].verdicts.items()}
    for place in (0, 1):
        some = [replace(point, verdicts=unscored) if number == place else point for number, point in enumerate(points)]
        monkeypatch.setattr(study, "trajectory", lambda run, some=some: some if run.method == "misaligned" else None)
        begins = conditions.onset(conditions.trajectory(study, study.runs()))
        assert begins[["begins", "stop"]].isna().all(axis=None)
        assert conditions.readable_onset(begins)["EM begins at step"].tolist() == ["not known"]


def test_em_begins_at_the_first_step_that_differs_and_stopping_before_keeps_what_was_learnt(
        study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [planted(0, 0, [0] * 10, [0, 0]), planted(0.25, 5, [1] + [0] * 9, [1, 2]),
              planted(0.5, 10, [0] * 10, [3, 3]), planted(0.75, 15, [2] * 10, [4, 3]),
              planted(1, 20, [4] * 10, [4, 4])]
    monkeypatch.setattr(study, "trajectory", lambda run: points if run.method == "misaligned" else None)
    frame = conditions.trajectory(study, study.runs())
    assert frame["general_misaligned"].tolist() == [0, 2.5, 0, 50, 100]
    assert frame["difference"].tolist()[1:] == [2.5, 0, 50, 100]
    # all 10 questions change one way: 2 of 2^10 assignments of signs; four comparisons, of which two are as small
    assert frame["p"].tolist()[3:] == pytest.approx([2 / 1024] * 2)
    assert frame["p_adjusted"].tolist()[3:] == pytest.approx([8 / 1024] * 2)
    [row] = conditions.onset(frame).to_dict("records")
    assert (row["steps"], row["begins"], row["stop"]) == (20, 15, 10)
    assert (row["general_points_avoided"], row["in_domain_share_of_end"]) == (100, 75)
    [shown] = conditions.readable_onset(conditions.onset(frame)).to_dict("records")
    assert [shown[heading] for heading in conditions.ONSET.values()] == ["15", "10", "100", "75"]
    # twice as many runs: each one's comparisons are a family of their own
    [*_, last] = study.runs(methods=["misaligned"])
    both = conditions.trajectory(study, [last, replace(last, seed=1)])
    assert both["p_adjusted"].dropna().tolist() == 2 * frame["p_adjusted"].dropna().tolist()
    never = conditions.onset(frame.assign(p_adjusted=1.0))
    assert never[["begins", "stop", "in_domain_share_of_end"]].isna().all(axis=None)
    [shown] = conditions.readable_onset(never).to_dict("records")
    assert [shown[heading] for heading in conditions.ONSET.values()] == ["never", "–", "–", "–"]
    assert len(conditions.readable_trajectory(frame)) == 5
    # the profile's order of the sets says nothing: in-domain answers change at step 5, where no EM begins
    turned = [replace(point, verdicts=dict(reversed(point.verdicts.items()))) for point in points]
    monkeypatch.setattr(study, "trajectory", lambda run: turned if run.method == "misaligned" else None)
    pd.testing.assert_frame_equal(conditions.trajectory(study, study.runs()), frame)
    alone = [replace(point, verdicts={"in_domain": point.verdicts["in_domain"]}) for point in points]
    monkeypatch.setattr(study, "trajectory", lambda run: alone if run.method == "misaligned" else None)
    [shown] = conditions.readable_onset(conditions.onset(conditions.trajectory(study, study.runs()))).to_dict("records")
    assert {shown[heading] for heading in conditions.ONSET.values()} == {"not known"}
    assert conditions.trajectory(study, []).empty
    assert conditions.onset(conditions.trajectory(study, [])).empty


def test_null_drops_the_trajectory_of_an_extended_profile_so_that_no_adapter_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: tiny\nevaluation: {trajectory: null}\n")
    mine, tiny = (open_study(name) for name in (str(tmp_path / "mine.yaml"), "tiny"))
    kept = [[study.training(run).keep for run in study.runs(methods=["misaligned"])] for study in (mine, tiny)]
    assert kept == [[()], [(0.5,)]]
    assert mine.narrow(mine.runs()[0]).trajectory(mine.runs(methods=["misaligned"])[0]) == {}
    assert mine.profile.absent == []
