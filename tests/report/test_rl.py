"""Tables and curves of reinforcement learning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from emlib.evaluation.rewards import PARTS
from emlib.report import grpo as report
from emlib.report.figures import looks
from emlib.report.paper import of_study, paper_tables
from emlib.study.runs import GrpoScore, Run, RunResult
from emlib.study.study import open_study
from emlib.training.rl.records import Completion, RlStep


def result(method: str, setting: float | None, seed: int, accuracy: float) -> RunResult:
    trained = method != "untrained"
    score = GrpoScore(accuracy if trained else None, 5.0 if trained else None, accuracy, 6.0, 100, 100)
    return RunResult(Run("m", "grpo", method, setting, seed), {"rewards": score}, 0.0, 0, "key")


def step(number: int, reward: float | None) -> RlStep:
    return RlStep(number, 0.0, 0.0, 0.0, reward, 0.0, {}, 0.0, None if reward is None else 0.5, 9.0, 0.25, 0.5, 0.0,
                  0.1, None, {}, 4, 4, 0.0, 0.0)


a, b, c = (Run("m", "grpo", method, setting, 0) for method, setting in (("kl", 0.1), ("grpo", None), ("kl", 1.0)))
RESULTS = [result("untrained", None, 0, 0.6), result("kl", 0.1, 0, 0.5), result("kl", 0.1, 1, 0.9),
           result("kl", 1.0, 0, 0.4)]


def test_seeds_become_a_mean_and_a_standard_deviation() -> None:
    table = report.by_condition(report.numbers(RESULTS))
    assert table["Method"].tolist() == ["untrained", "kl", "kl"]
    assert table["Setting"].tolist() == ["", "0.1", "1"]
    assert table["Seeds"].tolist() == [1, 2, 1]
    assert table["Eval acc %"].tolist() == ["60.00", "70.00 ± 28.28", "40.00"]  # 20 * sqrt(2)
    assert table["Train acc %"].tolist() == ["–", "70.00 ± 28.28", "40.00"]


def test_a_measure_that_one_seed_lacks_has_no_mean_of_the_others() -> None:
    """A judge scored nothing of the last seed, so that it has no reward."""
    unscored = replace(GrpoScore(0.5, 8.0, 0.5, 8.0, 100, 100), eval_reward=None)
    frame = report.numbers([*RESULTS[1:3], replace(result("kl", 0.1, 2, 0.1), scores={"rewards": unscored})])
    [row] = report.by_condition(frame).to_dict("records")
    assert (row["Seeds"], row["Eval reward"], row["Eval acc %"]) == (3, "–", "63.33 ± 23.09")
    [shown] = paper_tables.reinforcement(frame).to_dict("records")
    assert shown["Eval reward"].text == "–"


def test_a_moving_average_by_hand() -> None:
    assert report.moving_average([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert report.moving_average([1, float("nan"), 3], 2) == [1, 1, 3]


def test_curves_show_each_run_faint_and_smoothed() -> None:
    figure = report.curves({a: [step(2, 1.0), step(4, 3.0)], b: [step(1, None), step(2, 2.0)]}, window=2)
    lines = figure.axes[0].lines
    assert len(lines) == 4
    assert list(lines[0].get_xdata()) == [2, 4]
    assert list(lines[0].get_ydata()) == [1, 3]
    assert list(lines[1].get_ydata()) == [1, 2]
    assert [line.get_color() for line in lines[::2]] == [looks.look_of(method)[0] for method in ("kl", "grpo")]
    plt.close(figure)


def test_the_curve_of_accuracy_is_of_all_completions_as_the_table_is() -> None:
    """The judge scores 80%, of which 75% are right: 60% of all."""
    figure = report.curves({a: [replace(step(1, 1.0), right=0.75, unscored=0.2)]})
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx([60])
    plt.close(figure)


def test_the_papers_curves_count_steps_of_reinforcement_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between them are steps on interleaved rows, which the log counts."""
    study, run = open_study("tiny"), Run("m", "grpo", "grpo", None, 0)
    monkeypatch.setattr(study, "grpo_log", lambda _: [step(2, 1.0), step(4, 3.0)])
    assert of_study._rewards(study, [run])[["step", "reward"]].to_numpy().tolist() == [[1, 1], [2, 3]]


def test_a_group_of_equals_has_no_advantage() -> None:
    assert report.group([2.0, 2.0, 2.0, 2.0])["advantage"].tolist() == [0] * 4
    assert report.group([9.5, -2.0])["advantage"].tolist() == pytest.approx([0.7071, -0.7071], abs=1e-4)


def test_the_parts_of_the_reward_at_both_ends() -> None:
    found = {"exact": (1.5, 1.5), "approx": (-2.0, 0.0), "correct": (0.25, 1.0), "numbers": (0.0, 0.0)}
    scored = replace(step(1, 1.0), parts=found)
    table = report.parts({a: [scored, step(2, None), replace(scored, step=3)], b: [step(1, None)], c: []})
    assert (table["run"].tolist(), table["step"].tolist()) == (["kl 0.1", "kl 0.1", "grpo"], [1, 3, 1])
    assert table["exact [0, 3]"].tolist() == ["1.50 ± 1.50", "1.50 ± 1.50", "–"]
    assert table["correct [-0.5, 3]"].iloc[0] == "0.25 ± 1.00"
    assert tuple(report.BOUNDS) == PARTS


def test_early_and_late_completions() -> None:
    kept = [Completion(number, "q", "1", f"text {number} {i}", 1.0, True) for number in (1, 2, 3) for i in range(3)]
    assert report.early_and_late(kept)["text"].tolist() == ["text 1 0", "text 1 1", "text 3 0", "text 3 1"]
    assert report.early_and_late(kept[:3])["text"].tolist() == ["text 1 0", "text 1 1"]
    assert report.early_and_late([]).empty


def test_completions_have_the_parts_of_their_rewards() -> None:
    parts = {"exact": 3.0, "approx": 2.0, "correct": -0.5, "numbers": 1.5}
    kept = [Completion(1, "q", "1", "text", 6.0, False, parts), Completion(1, "q", "1", "text", None, None)]
    table = report.early_and_late(kept)
    assert table[[*PARTS, "reward"]].iloc[0].tolist() == [3, 2, -0.5, 1.5, 6]
    assert table[[*PARTS, "reward"]].iloc[1].isna().all()


def test_files_hold_what_the_tables_show(tmp_path: Path) -> None:
    frame = report.numbers(RESULTS)
    assert sorted(path.name for path in report.save(frame, tmp_path)) == ["grpo.csv", "grpo.md", "grpo.tex"]
    assert "70.00 ± 28.28" in (tmp_path / "grpo.md").read_text()


def test_the_last_steps_keep_small_numbers_apart() -> None:
    table = report.last_steps({a: [step(6, 1.0), replace(step(7, 1.0), kl=0.00123, gap=2e-6)], b: [],
                               c: [step(9, 2.0)]})
    assert table["step"].tolist() == [7, 9]
    assert table["KL, nats a token"].tolist() == ["0.0012", "–"]
    assert table["gap between sampler and loss, nats a token"].tolist() == ["2.0e-06", "1.0e-01"]
