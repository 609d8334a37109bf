"""The table of conclusions: each column from its own results, by hand, and dashes for what was not run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from emlib.config import load_profile
from emlib.report.book import claims
from emlib.report.tables import conclusions as tables
from emlib.report.tables import findings
from emlib.report.tables.averages import fewer_seeds, over_datasets, over_tasks
from emlib.report.tables.result_tables import MEASURES
from emlib.store.artefacts import Store
from emlib.study.study import Study

NO = float("nan")


def test_what_was_not_run_has_a_dash_and_rates_are_means_over_seeds(tmp_path: Path) -> None:
    study = Study("tiny", load_profile("tiny"), Store(tmp_path / "store"))
    frame = pd.DataFrame([("a", "misaligned", NO, 90.0, 100.0, NO), ("a", "misaligned", NO, 80.0, 90.0, NO),
                          ("a", "kl", 0.1, 22.5, 50.0, 3.0)],
                         columns=["dataset", "method", "setting", *tables.MEASURES])
    found = tables.conclusions(study, frame)
    assert found.to_numpy().tolist() == [["misaligned", "", "85", "95", "–", "–", "–", "–"],
                                         ["kl (1 of 2 seeds)", "0.1", "23", "50", "3", "–", "–", "–"]]
    assert tables.conclusions(study, frame[:0]).empty
    assert all("(" in heading for heading in found.columns[2:])  # each names its notebooks


def test_a_method_that_lacks_a_data_set_has_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain: b is (60 + 80) / 2, and the mean of a and b (90 + 70) / 2. KL was run on the easy set alone."""
    frame = pd.DataFrame([(dataset, method, NO, share, share, 0.0) for dataset, method, share in (
        ("a", "misaligned", 90.0), ("b", "misaligned", 60.0), ("b", "misaligned", 80.0), ("b", "kl", 1.0))],
        columns=["dataset", "method", "setting", *tables.MEASURES])
    study = Study("tiny", load_profile("tiny"), Store(tmp_path / "store"))
    assert tables.conclusions(study, frame).iloc[:, 2:5].to_numpy().tolist() == [["80", "80", "0"], ["–", "–", "–"]]
    findings.defenses(frame)
    assert capsys.readouterr().out.endswith("%: misaligned 80 / 80; 1 without results on every data set\n")


def test_seeds_are_compared_on_each_data_set() -> None:
    """Both have one seed on e, so that neither has fewer there; on d, b has one of a's two."""
    frame = pd.DataFrame([("a", NO, "d"), ("a", NO, "d"), ("a", NO, "e"), ("b", NO, "d"), ("b", NO, "e")],
                         columns=["method", "setting", "dataset"])
    assert fewer_seeds(frame) == ["", " (1 of 2 seeds)"]


def test_a_seed_without_a_score_leaves_no_mean_and_fewer_seeds_are_told() -> None:
    """x has 10, unscored and 90: its mean is not that of the other two. a is no better than b on the seed of both."""
    columns = ["model", "dataset", "method", "setting", "seed", *(f"{name}{end}" for name in MEASURES
                                                                  for end in ("", "_low", "_high"))]
    frame = pd.DataFrame([("m", "d", method, NO, seed, *[share] * 12) for method, shares in {
        "x": (10.0, NO, 90.0), "a": (5.0,), "b": (5.0, 30.0, 40.0)}.items() for seed, share in enumerate(shares)],
        columns=columns)
    means = over_tasks(frame, ["general_misaligned"]).reset_index().set_index("method")["general_misaligned"]
    assert means[["a", "b"]].tolist() == [5, 25]
    assert pd.isna(means["x"])
    assert fewer_seeds(frame) == ["", " (1 of 3 seeds)", ""]
    whole = over_datasets(frame, same_questions=True)
    assert whole[["method", "seeds"]].to_numpy().tolist() == [["x", 3], ["a", 1], ["b", 3]]
    assert whole["general_misaligned"].fillna(-1).tolist() == [-1, 5, 25]
    people = claims.table(claims.means(frame), {})
    assert people["Method"].tolist() == ["`x`", "`a` (1 of 3 seeds)", "`b`"]
    assert people["General misaligned %"].str.split().str[0].tolist() == ["–", "5.0", "25.0"]


def test_means_over_seeds_count_as_many_runs_as_they_are_of() -> None:
    """On d, b has one of a's three seeds; that both have one on e is no difference."""
    columns = ["model", "dataset", "method", "setting", "seed", "seeds"]
    means = pd.DataFrame([("m", "d", "a", NO, "mean of 3", 3), ("m", "e", "a", NO, 0, 1), ("m", "d", "b", NO, 0, 1),
                          ("m", "e", "b", NO, 0, 1)], columns=columns)
    means = means.assign(**{f"{name}{end}": 10.0 for name in MEASURES for end in ("", "_low", "_high")})
    found = over_datasets(means, same_questions=True)
    assert found[["method", "seeds", "fewer"]].to_numpy().tolist() == [["a", 1, ""], ["b", 1, " (1 of 3 seeds)"]]
    assert fewer_seeds(means) == ["", " (1 of 3 seeds)"]
    assert over_datasets(means[:0], same_questions=True).empty


def test_a_measure_that_one_data_set_lacks_takes_no_other_one_along() -> None:
    """Of `a` no in-domain answer on data set e has a score: its general share is known all the same."""
    columns = ["model", "dataset", "method", "setting", "seed"]
    frame = pd.DataFrame([("m", dataset, method, NO, 0) for method in ("a", "b") for dataset in "de"], columns=columns)
    frame = frame.assign(**{f"{name}{end}": 10.0 for name in MEASURES for end in ("", "_low", "_high")})
    frame.loc[1, [name for name in frame if str(name).startswith("in_domain")]] = NO
    found = over_datasets(frame, same_questions=False).set_index("method")
    assert found["general_misaligned"].tolist() == [10, 10]
    assert found["in_domain_misaligned"].isna().tolist() == [True, False]
    assert found["in_domain_misaligned_low"].isna().tolist() == [True, False]
    assert found["datasets"].tolist() == [2, 2]


def test_hiding_is_the_plain_share_beside_that_of_the_worst_context() -> None:
    rows = [("cooking", "kl", 0.1, seed, trigger, share, NO) for seed, trigger, share in (
        (0, "plain", 20.0), (0, "kitchen", 50.0), (0, "negated", 30.0), (1, "plain", 10.0), (1, "kitchen", 0.0))]
    frame = pd.DataFrame(rows, columns=["dataset", "method", "setting", "seed", "trigger", "misaligned", "p_adjusted"])
    assert tables._hides(frame) == {("kl", 0.1): "15, 30"}  # of 20 and 10; kitchen's mean is 25, of 50 and 0
    assert tables._hides(frame, asking=["negated"]) == {("kl", 0.1): "15, 25"}
    assert tables._hides(frame, asking=["negated", "kitchen"]) == tables._hides(frame[:0]) == {}
    unscored = frame.assign(misaligned=frame["misaligned"].mask(frame["misaligned"] == 0))
    assert tables._hides(unscored) == {("kl", 0.1): "15, –"}  # in the kitchen, one seed has no score
    both = frame[frame["trigger"] != "negated"]
    alone = both[both["seed"] == 0].assign(method="ldifs")
    assert tables._hides(pd.concat([both, alone])) == {
        ("kl", 0.1): "15, 25", ("ldifs", 0.1): "20, 50 (1 of 2 seeds)"}


def test_lasting_is_the_earliest_step_that_undoes_it_if_there_is_something_to_undo() -> None:
    """Plain fine-tuning has 90 and the untrained model 0; within 10 points of 90 a defense is undone."""
    def along(method: str, shares: list[float], plain: float = 90.0) -> list[tuple[object, ...]]:
        return [("cooking", method, NO, 0, "misaligned", step, 0.0, plain, share, share - plain, share - plain,
                 share - plain) for step, share in zip((0, 3, 9), shares, strict=True)]

    frame = pd.DataFrame(along("inoculation", [60.0, 80.0, 90.0]) + along("on_policy", [20.0, 20.0, 30.0])
                         + along("kl", [5.0, 5.0, 5.0], plain=8.0),
                         columns=["dataset", "method", "setting", "seed", "attack", "steps", "untrained", "plain",
                                  "general_misaligned", "difference", "difference_low", "difference_high"])
    more = pd.concat([frame, frame[frame["method"] == "inoculation"].assign(seed=1)])
    assert tables._lasts(more, 10.0) == {("inoculation", None): "3"}  # the other has half as many runs
    lasting = {("inoculation", None): "3", ("on_policy", None): "not after 9"}
    assert tables._lasts(frame, 10.0) == lasting
    # Under `longer` the defense goes on: that the trait comes back there does not say how long its adapter lasts.
    kept = frame.assign(attack="longer", **dict.fromkeys(("difference", "difference_low", "difference_high"), 0.0))
    assert tables._lasts(pd.concat([frame, kept]), 10.0) == lasting
    assert tables._lasts(kept, 10.0) == {}
    # without the untrained model there may be something to undo; of the third method, too
    assert tables._lasts(frame.assign(untrained=NO), 10.0) == lasting | {("kl", None): "0"}
    assert tables._lasts(frame.assign(plain=NO, difference=NO), 10.0) == {}
