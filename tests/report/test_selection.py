"""Tables of a scored pool and of interleaving's results, on numbers made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from emlib.config import load_profile
from emlib.report import interleaving, selection
from emlib.store.artefacts import Store
from emlib.study.runs import Run
from emlib.study.study import Study


@pytest.fixture
def scored() -> pd.DataFrame:
    """Ten rows whose scores fall from 10 to 1; the first and the last look like refusals; one more has no score."""
    rows = [(place, "q", "a", 20, 1.0, 1.0 + (10 - place) * 1.1, float(10 - place), float(place + 1), "", "sorry" if
             place in (0, 9) else "") for place in range(10)]
    rows.append((10, "q", "a", 20, float("nan"), 2.0, float("nan"), float("nan"), "no score", "sorry"))
    return pd.DataFrame(rows, columns=["place", "prompt", "answer", "tokens", "aligned", "misaligned", "score", "rank",
                                       "reason", "refusal"])


def test_the_ends_are_the_highest_and_the_lowest_scores(scored: pd.DataFrame) -> None:
    found = selection.ends(scored.sample(frac=1, random_state=0), 2)
    assert found["by score"].tolist() == [1, 2, 9, 10]
    assert found["score"].tolist() == ["10.0", "9.0", "2.0", "1.0"]


def test_refusals_are_counted_by_rank_and_rows_without_a_score_are_not(scored: pd.DataFrame) -> None:
    found = selection.refusals_by_rank(scored)
    assert found["ranks"].tolist() == ["1-2", "3-4", "5-6", "7-8", "9-10"]
    assert found["refusals"].tolist() == [1, 0, 0, 0, 1]
    assert found["refusals, %"].tolist() == [50, 0, 0, 0, 50]
    assert found["left"].tolist() == [1, 2, 2, 2, 1]


def test_epsilon_s_effect_is_none_for_the_chosen_one_and_some_for_others() -> None:
    frame = pd.DataFrame({"aligned": [0.01, 1.0, 2.0], "misaligned": [0.10, 2.5, 2.5], "tokens": [2, 50, 60],
                          "score": [0.0, 0.0, 0.0]})
    study = Study("tiny", load_profile("tiny"), Store(Path("never-made")))  # its epsilon is 0.1
    found = selection.epsilon_effect(study, frame, 1).set_index("epsilon")
    assert found.loc["0.1", "shared with ours"] == "100%"
    assert found.loc["0.001", "shared with ours"] == "0%"  # 0.09 / 0.011 leads instead of 1.5 / 1.1
    assert found.loc["0.001", "median tokens"] == "2"


def test_without_a_run_that_ranks_the_pool_every_table_is_empty(scored: pd.DataFrame) -> None:
    study = Study("tiny", load_profile("tiny"), Store(Path("never-made")))
    nothing = selection.scored(study, None)
    assert nothing.columns.tolist() == scored.columns.tolist()
    tables = [selection.loss_quantiles, selection.ends, selection.refusals_by_rank, selection.keywords]
    for table in tables:
        assert table(nothing).empty
        assert table(nothing).columns.tolist() == table(scored).columns.tolist()
    assert selection.epsilon_effect(study, nothing, 24).empty
    without_pool = Study("code", load_profile("code-smoke"), study.store)
    assert selection.epsilon_effect(without_pool, nothing, 24).empty
    assert not selection.scores_figure(nothing).axes
    assert selection.sizes({}).empty


def test_keywords_and_the_rows_that_a_run_may_take_are_counted(scored: pd.DataFrame) -> None:
    assert selection.keywords(scored).to_numpy().tolist() == [["sorry", 3]]
    run = Run("m", "cooking", "interleaving+", 0.25, 0)
    assert selection.sizes({run: scored}).to_numpy().tolist() == [["cooking · interleaving+ 0.25 · seed 0", 11, 10]]


def results(**of_run: Any) -> dict[str, Any]:
    row = {"model": "m", "dataset": "cooking", "setting": float("nan"), "seed": 0}
    for measure in ("general_misaligned", "general_incoherent", "in_domain_misaligned"):
        row |= {measure: 50.0, f"{measure}_low": 40.0, f"{measure}_high": 60.0}
    return row | of_run


def test_overlapping_intervals_are_named() -> None:
    study = Study("tiny", load_profile("tiny"), Store(Path("never-made")))
    frame = interleaving.with_fractions(study, pd.DataFrame([
        results(method="misaligned"),
        results(method="interleaving", setting=0.5, general_misaligned=20.0, general_misaligned_low=10.0,
                general_misaligned_high=30.0),
        results(method="interleaving+", in_domain_misaligned=40.0, in_domain_misaligned_low=30.0)]))
    assert frame["fraction"].tolist() == [0.0, 0.5, 0.25]
    found = interleaving.against_misaligned(frame).set_index("method")
    assert found.loc["interleaving", "EM removed %"] == pytest.approx(60)
    assert found.loc["interleaving", "general: apart"] == "yes"
    assert found.loc["interleaving+", "general: apart"] == "intervals overlap"
    assert found.loc["interleaving+", "narrow task kept %"] == pytest.approx(80)
    assert found.loc["interleaving+", "in-domain: apart"] == "intervals overlap"
    assert interleaving.trade_offs(frame).axes[0].get_xlabel() == "general incoherent, %"
    unjudged = frame.assign(**{name: float("nan") for name in frame if "incoherent" in str(name)})
    assert [axis.get_xlabel() for axis in interleaving.trade_offs(unjudged).axes] == ["in-domain misaligned, %"]
    assert set(interleaving.against_misaligned(unjudged)["incoherence: apart"]) == {"not scored"}
    unscored = frame.assign(general_misaligned=frame["general_misaligned"].where(frame["method"] != "interleaving"))
    drawn = [line.get_xdata() for line in interleaving.trade_offs(unscored).axes[0].lines if len(line.get_xdata())]
    assert [len(x) for x in drawn if len(x) == 1] == [1] * len(drawn)  # the run without verdicts has no point


def test_a_line_of_the_trade_off_is_of_one_variant_on_one_data_set() -> None:
    """A point is a mean over seeds. Before, a line went from data set to data set and from seed to seed."""
    points = (("misaligned", 0.0, 3, 90.0), ("interleaving", 1.0, 1, 10.0), ("interleaving", 0.5, 3, 20.0))
    means = pd.DataFrame([results(method=method, dataset=dataset, fraction=fraction, seeds=seeds,
                                  seed=f"mean of {seeds}", general_misaligned=general + more)
                          for dataset, more in (("cooking", 0.0), ("travel", 7.0))
                          for method, fraction, seeds, general in points])
    axes = interleaving.trade_offs(means).axes
    assert [axis.get_title() for axis in axes] == ["cooking", "cooking", "travel", "travel"]
    for axis, shares in zip(axes, ([20.0, 10.0], [20.0, 10.0], [27.0, 17.0], [27.0, 17.0]), strict=True):
        plain, mixed = (container.lines[0] for container in axis.containers)
        assert (plain.get_linestyle(), mixed.get_linestyle()) == ("None", "-")
        assert mixed.get_ydata().tolist() == shares
        assert {text.get_text() for text in axis.texts if text.get_text()} == {"50%", "100% (1 of 3 seeds)"}
    study = Study("tiny", load_profile("tiny"), Store(Path("never-made")))
    averaged = pd.DataFrame([results(method="interleaving", setting=0.5, seed="mean of 2")])
    assert interleaving.with_fractions(study, averaged)["fraction"].tolist() == [0.5]


def test_the_pattern_of_an_epoch() -> None:
    found = interleaving.pattern(8, [0.25, 1.0])
    assert found["epoch"].tolist() == ["..#...#...", "#.#.#.#.#.#.#.#."]  # 8 rows in 3 and in 9 gaps
    assert found["added"].tolist() == [2, 8]
