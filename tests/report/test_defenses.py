"""What a defense removes and keeps, the trade-off as a picture, the costs as ratios: from records, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from emlib.core import paths
from emlib.core.records import Answer, Verdict
from emlib.evaluation.rates import rates
from emlib.report.figures import defenses, looks
from emlib.report.tables import costs, findings, pairs, result_tables
from emlib.store.artefacts import Store
from emlib.study.pool import losses_step
from emlib.study.runs import Run, RunResult, SteeringPoint
from emlib.study.study import Study, open_study
from emlib.training.records import StepRecord


def verdicts(misaligned: int, asked: int = 10) -> list[Verdict]:
    return [Verdict(f"q{i % 2}", i // 2, 10.0 if i < misaligned else 90.0, 80.0) for i in range(asked)]


def result(method: str, setting: float | None, general: int, in_domain: int) -> RunResult:
    return RunResult(Run("m", "cooking", method, setting, 0), {
        "general": rates(verdicts(general)), "in_domain": rates(verdicts(in_domain))}, 1.0, 10, f"{method}{setting}")


@pytest.fixture
def frame() -> pd.DataFrame:
    return result_tables.numbers([
        result("untrained", None, 0, 0), result("aligned", None, 0, 0), result("misaligned", None, 8, 10),
        result("kl", 0.1, 4, 9), result("kl", 1.0, 0, 5), result("inoculation", None, 9, 10)])


def test_the_effect_removed_and_the_task_kept(frame: pd.DataFrame) -> None:
    found = defenses.against_misaligned(frame)
    assert found["method"].tolist() == ["kl", "kl", "inoculation"]
    assert found["effect removed"].tolist() == [50, 100, -12.5]  # (8-4)/8, (8-0)/8, (8-9)/8
    assert found["narrow task kept"].tolist() == [90, 50, 100]


def test_where_plain_fine_tuning_adds_nothing_no_effect_is_removed() -> None:
    frame = result_tables.numbers([result("untrained", None, 8, 0), result("aligned", None, 8, 0),
                                   result("misaligned", None, 4, 0), result("kl", 1.0, 10, 5)])
    found = defenses.against_misaligned(frame)
    assert found[["effect removed", "narrow task kept"]].isna().all(axis=None)


def test_without_the_baselines_nothing_is_said(frame: pd.DataFrame) -> None:
    alone = defenses.against_misaligned(frame[frame["method"] == "kl"])
    assert alone[["effect removed", "narrow task kept"]].isna().all(axis=None)
    assert defenses.against_misaligned(frame.iloc[:3]).empty


def test_the_tradeoff_has_a_point_where_the_numbers_are_and_a_line_through_a_sweep(frame: pd.DataFrame) -> None:
    axis = defenses.tradeoff(frame).axes[0]
    lines = {container.get_label(): container.lines[0] for container in axis.containers}
    assert set(lines) == {"untrained", "aligned", "no defense", "kl", "inoculation"}
    assert lines["kl"].get_xydata().tolist() == [[90, 40], [50, 0]]
    assert lines["kl"].get_linestyle() == "-"
    assert {text.get_text() for text in axis.texts if text.get_text()} == {
        "untrained, aligned", "no defense", "inoculation", "kl 0.1", "kl 1"}
    assert not axis.figure.legends
    assert not axis.get_title()  # there is one data set
    plt.close("all")


def test_panels_of_the_tradeoff_stand_two_by_two_with_names_at_their_points(frame: pd.DataFrame) -> None:
    names = ["cooking", "travel", "fitness", "gardening"]
    figure = defenses.tradeoff(pd.concat([frame.assign(dataset=name) for name in names]))
    assert [{text.get_text() for text in axis.texts if text.get_text()} for axis in figure.axes] == 4 * [
        {"untrained, aligned", "no defense", "inoculation", "kl 0.1", "kl 1"}]
    assert [axis.get_title() for axis in figure.axes] == names
    assert len({round(axis.get_position().x0, 2) for axis in figure.axes}) == 2
    assert figure.get_figwidth() < 11  # inches: at 900 pixels, 8 points are 9 pixels
    plt.close("all")


def test_a_point_of_fewer_seeds_than_others_of_its_data_set_says_so(frame: pd.DataFrame) -> None:
    counted = frame.assign(seeds=[3, 3, 3, 3, 1, 3])
    both = pd.concat([counted, frame.assign(dataset="travel", seeds=1)])
    shown = [{text.get_text() for text in axis.texts if text.get_text()} for axis in defenses.tradeoff(both).axes]
    assert shown == [{"untrained, aligned", "no defense", "inoculation", "kl 0.1", name}
                     for name in ("kl 1 (1 of 3 seeds)", "kl 1")]
    plt.close("all")


def test_a_point_that_would_cover_another_one_is_smaller(frame: pd.DataFrame) -> None:
    same = frame[frame["method"] == "inoculation"].assign(method="ldifs", general_misaligned=89.0)
    axis = defenses.tradeoff(pd.concat([frame, same])).axes[0]
    sizes = {container.get_label(): container.lines[0].get_markersize() for container in axis.containers}
    assert sizes["ldifs"] < sizes["inoculation"] == sizes["kl"]
    plt.close("all")


def test_the_bars_of_the_committed_tradeoff_are_the_intervals_of_its_table() -> None:
    """Of several seeds they are not means of the seeds' intervals."""
    means = pd.read_csv(paths.ROOT / "figures" / "demo-full" / "over_seeds.csv")
    axis = defenses.tradeoff(pairs.in_columns(means)).axes[0]
    kl = next(container for container in axis.containers if container.get_label() == "kl")
    general = means[(means["method"] == "kl") & (means["set"] == "general")].sort_values("setting")
    ends = [segment[:, 1].tolist() for segment in kl.lines[2][1].get_segments()]
    assert ends == [pytest.approx(pair) for pair in general[["low", "high"]].to_numpy().tolist()]
    plt.close("all")


def test_penalties_are_drawn_where_they_are_told() -> None:
    log = [StepRecord(step, 1.0, 0.1, 1.0, 5, 3, 0.1, {"kl": 0.5 * step}) for step in (1, 2)]
    plain = [StepRecord(1, 1.0, 0.1, 1.0, 5, 3, 0.1)]
    kl, undefended = (Run("m", "cooking", method, None, 0) for method in ("kl", "misaligned"))
    axis = defenses.penalty_curves({kl: log, undefended: plain}, "kl", "nats").axes[0]
    assert axis.lines[0].get_color() == looks.look_of("kl")[0]
    assert [line.get_xydata().tolist() for line in axis.lines] == [[[1, 0.5], [2, 1.0]]]
    assert not defenses.penalty_curves({}, "kl", "nats").axes[0].lines
    plt.close("all")


def test_answers_under_a_vector_layer_by_layer(capsys: pytest.CaptureFixture[str]) -> None:
    probes = [SteeringPoint(layer, strength, [Answer("q0", 0, f"{layer} {strength}", "stop", 2)], verdicts(count))
              for layer, strength, count in ((8, 0.0, 0), (8, 2.0, 5), (15, 0.0, 0), (15, 2.0, 9))]
    found = defenses.steered_rates(probes)
    assert found["trait (above 70) %"].tolist() == [0, 50, 0, 90]
    assert defenses.steered_answers(probes)["answer"].tolist() == ["8 0.0", "8 2.0", "15 0.0", "15 2.0"]
    assert set(defenses.steered_answers(probes)["question"]) == {"q0"}
    unjudged = defenses.steered_rates([
        replace(one, verdicts=[replace(v, coherence_judged=False) for v in one.verdicts]) for one in probes])
    assert (unjudged["trait (above 70) %"].tolist(), unjudged["incoherent %"].isna().all()) == ([0, 50, 0, 90], True)
    assert [axis.get_title() for axis in defenses.steered_grid(unjudged).axes] == ["trait (above 70) % of 10 answers"]
    findings.vector(unjudged)
    assert "layer 15 with strength 2 gives 90% of the answers the trait (a score above 70)" in capsys.readouterr().out
    first, second = defenses.steered_grid(found).axes
    assert [text.get_text() for text in first.texts] == ["0", "50", "0", "90"]
    assert {text.get_text() for text in second.texts} == {"0"}
    plt.close("all")


def test_costs_are_ratios_to_the_plain_run_of_the_same_data_and_seed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    study = open_study("tiny")
    study.store = Store(tmp_path / "store")
    facts = {"misaligned": (10.0, 100, 50.0), "kl": (15.0, 100, 60.0), "inoculation": (12.0, 120, None)}
    for run in study.runs():
        if run.method in facts and run.setting in (None, 1.0):
            seconds, tokens, peak = facts[run.method]
            study.store.get(study.task(run).adapter(run), lambda _, said={
                "seconds": seconds, "tokens": tokens, "peak_memory": peak}: said)
    found = costs.training(study).set_index(["method", "setting"]).sort_index()
    kl = found.loc[("kl", 1.0)]
    assert kl[["time", "time a token", "memory"]].tolist() == pytest.approx([1.5, 1.5, 1.2])
    assert kl["work"] == 1.0  # its reference's states are stored once
    assert kl["section 5.3"] == "negligible"
    inoculation = found.xs("inoculation").iloc[0]
    assert inoculation[["time", "time a token"]].tolist() == pytest.approx([1.2, 1.0])
    assert math.isnan(inoculation["memory"])
    assert inoculation["work"] == pytest.approx(1.2)
    assert costs.once(study).empty
    assert costs.noise(study) == (pytest.approx(0), [["misaligned", "inoculation"]])  # 0.1 s a token, both


@pytest.mark.parametrize(("counted", "seconds", "whole"), [
    ({"losses": 30, "computed": 30}, 6.0, 6.0), ({"losses": 30, "computed": 10}, 2.0, 6.0),
    ({"losses": 30, "computed": 9}, 2.0, None), ({"losses": 30, "computed": 0}, 0.5, None), ({}, 6.0, None)])
def test_losses_that_were_known_before_do_not_make_scoring_cheap(
        counted: dict[str, int], seconds: float, whole: float | None, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows under three models at 0.2 s, and 3 s a row of training, so that R is 15."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    study = open_study("tiny")
    for run in study.runs(methods=["misaligned", "interleaving+"]):
        study.store.get(study.task(run).adapter(run), lambda _: {
            "rows": 8, "seconds": 24.0, "tokens": 100, "steps": 1, "peak_memory": None})
    [run] = study.runs(methods=["interleaving+"])
    step = losses_step(study, run)
    assert step is not None
    study.store.get(step, lambda _: {"rows": 10, "models": ["aligned", "one", "two"], "seconds": seconds, **counted})
    [ours] = costs.scoring(study).iloc[1:].to_dict("records")
    [scored] = costs.once(study)["seconds"]
    if whole is None:
        assert math.isnan(ours["R"])
        assert math.isnan(ours["equation 10, %"])
        assert math.isnan(scored)
    else:
        assert (ours["R"], scored) == (pytest.approx(15), pytest.approx(whole))
        assert ours["equation 10, %"] == pytest.approx(100 * 6 / (24 * ours["runs"]))


def test_losses_that_data_sets_share_are_listed_once_and_serve_all_of_their_runs(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of losses says nothing of the defended data set."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    tiny = open_study("tiny")
    study = Study("tiny", tiny.profile.model_copy(update={"datasets": ("cooking", "travel")}), tiny.store)
    runs = study.runs(methods=["interleaving+"])
    assert len({run.task for run in runs}) == len(runs) == 2
    step = losses_step(study, runs[0])
    assert step is not None
    for run in study.runs(methods=["misaligned", "interleaving+"]):
        study.store.get(study.task(run).adapter(run), lambda _: {
            "rows": 8, "seconds": 24.0, "tokens": 100, "steps": 1, "peak_memory": None})
    study.store.get(step, lambda _: {"rows": 10, "models": ["aligned", "one", "two"], "seconds": 6.0, "losses": 30,
                                     "computed": 30})
    monkeypatch.setattr(costs, "losses_step", lambda _, run: replace(step, dataset=run.task) if run in runs else None)
    monkeypatch.setattr(costs, "_shared", lambda _, run: [replace(step, dataset=run.task)] if run in runs else [])
    assert costs.once(study)["seconds"].tolist() == [6.0]
    for ours in costs.scoring(study).iloc[1:].to_dict("records"):
        assert ours["runs"] == 2
        assert ours["equation 10, %"] == pytest.approx(100 * 6 / (24 * 2))
    assert len(costs.scoring(study)) == 1 + 2


@pytest.mark.parametrize(("reads", "work"), [("none", 120), ("all", 160), ("added", 120 + 20 / 3)])
def test_what_a_reference_model_reads_is_a_third_of_the_work_of_training(reads: str, work: float) -> None:
    step = SimpleNamespace(reads=reads)
    study: Any = SimpleNamespace(task=lambda run: SimpleNamespace(adapter=lambda run: step))
    assert costs._work(study, Run("m", "cooking", "kl", 1.0, 0), {"tokens": 120}, 100) == pytest.approx(work)
    stopped = {"tokens": 60, "steps": 3, "planned_steps": 6}  # of the same run half way: 50 plain tokens, and 10 added
    half = {"none": 60, "all": 80, "added": 60 + 10 / 3}[reads]
    assert costs._work(study, Run("m", "cooking", "kl", 1.0, 0), stopped, 100) == pytest.approx(half)


def test_passes_over_the_candidates_that_training_chooses_from_are_a_third_of_the_work_of_training() -> None:
    """100 tokens of its own and 20 chosen ones; 240 that were scored are as much as 80 more."""
    study: Any = SimpleNamespace(task=lambda run: SimpleNamespace(adapter=lambda run: SimpleNamespace(reads="none")))
    facts = {"tokens": 120, "scored_tokens": 240}
    assert costs._work(study, Run("m", "cooking", "online", None, 0), facts, 100) == pytest.approx(200)


def test_times_within_the_noise_of_the_machine_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`aligned` and `misaligned` do equal work a token: 0.2 and 0.1 s are noise, which hides what KL takes."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    study = open_study("tiny")
    study.store = Store(tmp_path / "store")
    assert math.isnan(costs.noise(study)[0])
    assert "No two runs here do equal work" in costs.statement(*costs.noise(study))
    facts = {"misaligned": (10.0, 100, 9), "aligned": (18.0, 90, 9), "kl": (15.0, 100, 9),
             "interleaving": (90.0, 200, 18), "on_policy": (84.0, 200, 18)}
    for run in study.runs():
        if run.method in facts and run.setting in (None, 1.0, 0.5):
            seconds, tokens, steps = facts[run.method]
            study.store.get(study.task(run).adapter(run), lambda _, said={
                "seconds": seconds, "tokens": tokens, "peak_memory": None, "steps": steps}: said)
    apart, groups = costs.noise(study)  # runs with other numbers of steps are compared with each other alone
    assert (apart, groups) == (pytest.approx(100), [["aligned", "misaligned"], ["interleaving", "on_policy"]])
    shown = costs.readable(costs.training(study), apart).set_index("method")["time"].to_dict()
    assert (shown["kl"], shown["interleaving"]) == ("(1.5)", "9.0")
    assert ("(`aligned` and `misaligned`; `interleaving` and `on_policy`) differ by up to 100% in their time a token"
            in costs.statement(apart, groups))
    assert "do not rank the defenses" in costs.statement(apart, groups)
    assert "do not rank" not in costs.statement(3.0, groups)
