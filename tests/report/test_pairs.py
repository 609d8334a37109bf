"""Which runs are compared with which, and what becomes of their numbers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from emlib.config.methods import Method
from emlib.core.records import Verdict
from emlib.evaluation.over_seeds import mean_over_seeds
from emlib.evaluation.paired import difference
from emlib.evaluation.rates import rates
from emlib.report.paper import of_study
from emlib.report.tables import pairs, result_tables
from emlib.report.tables.averages import over_datasets
from emlib.report.tables.pairs import Trained
from emlib.study.runs import Run, RunResult


def method(name: str, *defenses: dict[str, Any]) -> Method:
    return Method.model_validate({"name": name, "defenses": defenses})


METHODS = [method("misaligned"), method("kl", {"kind": "kl"}), method("interleaving", {"kind": "interleaving"}),
           method("interleaving++", {"kind": "interleaving"})]


def run(*counts: int) -> list[Verdict]:
    return [Verdict(f"q{i}", sample, 10.0 if sample < count else 90.0, 80.0)
            for i, count in enumerate(counts) for sample in range(4)]


@pytest.fixture
def verdicts() -> dict[Trained, dict[int, list[Verdict]]]:
    return {
        ("a", "misaligned", None): {0: run(4, 4, 2), 1: run(4, 2, 2)},
        ("a", "kl", 0.1): {0: run(2, 2, 1)},
        ("a", "interleaving", 0.2): {0: run(1, 1, 1)},
        ("a", "interleaving", 0.05): {0: run(2, 3, 1)},
        ("a", "interleaving++", 0.2): {0: run(0, 0, 1)},
        ("b", "kl", 0.1): {0: run(0, 0, 0)}}


def test_partners(verdicts: dict[Trained, dict[int, list[Verdict]]]) -> None:
    """`kl` meets interleaving at the paper's 5%, `interleaving++` its own share; data set b has nothing to meet."""
    frame = pairs.paired(verdicts, METHODS)
    met = list(frame[["method", "setting", "against", "against_setting"]].fillna(-1).itertuples(index=False, name=None))
    assert met == [
        ("kl", 0.1, "misaligned", -1), ("interleaving", 0.2, "misaligned", -1),
        ("interleaving", 0.05, "misaligned", -1), ("interleaving++", 0.2, "misaligned", -1),
        ("misaligned", -1, "interleaving", 0.05), ("kl", 0.1, "interleaving", 0.05),
        ("interleaving++", 0.2, "interleaving", 0.2)]
    assert set(frame["dataset"]) == {"a"}
    assert list(frame) == pairs.PAIR_COLUMNS


def test_an_interleaving_method_without_a_sweep_meets_the_same_fraction_or_nothing() -> None:
    """The fraction is the one that the method states, on both sides, also under another name and beside a defense."""
    quarter, tenth = {"kind": "interleaving", "fraction": 0.25}, {"kind": "interleaving", "fraction": 0.1}
    methods = [method("misaligned"), method("interleaving", {"kind": "interleaving"}), method("interleaving+", quarter),
               method("online", quarter), method("both", {"kind": "inoculation"}, quarter), method("on_policy", tenth)]
    names = ["interleaving+", "online", "both", "on_policy"]
    there: list[Trained] = [("a", name, None) for name in ["misaligned", *names]]
    swept: list[Trained] = [("a", "interleaving", 0.05), ("a", "interleaving", 0.25)]
    met = {one[1]: other[1:] for one, other in pairs.partners([*there, *swept], methods) if other[1] == "interleaving"}
    assert met == {"misaligned": ("interleaving", 0.05)} | dict.fromkeys(names[:3], ("interleaving", 0.25))
    methods[1] = method("interleaving", tenth)
    met = {one[1]: other for one, other in pairs.partners([*there, ("a", "interleaving", None)], methods)
           if other[1] == "interleaving"}
    assert met == dict.fromkeys(["misaligned", "on_policy"], ("a", "interleaving", None))


def test_only_shared_seeds_are_compared(verdicts: dict[Trained, dict[int, list[Verdict]]]) -> None:
    row = pairs.paired(verdicts, METHODS).iloc[0]
    assert row["seeds"] == 1
    assert row["difference"] == pytest.approx(100 * (5 - 10) / 12)
    assert row["p_adjusted"] >= row["p"]


def test_means_over_seeds(verdicts: dict[Trained, dict[int, list[Verdict]]]) -> None:
    plain = ("a", "misaligned", None)
    frame = pairs.over_seeds({"general": verdicts, "in_domain": {plain: verdicts[plain]}})
    assert frame["set"].tolist() == ["general"] * len(verdicts) + ["in_domain"]
    row = frame.query("method == 'misaligned'").iloc[0]
    assert row["percent"] == pytest.approx(75)
    assert row["seeds"] == 2
    assert row["low"] <= 75 <= row["high"]


def test_the_mean_of_several_seeds_has_the_interval_of_the_table_and_one_run_its_own(
        verdicts: dict[Trained, dict[int, list[Verdict]]]) -> None:
    """Figures and tables agree; the run under KL may be one that was tried by hand, whose study is another."""
    plain, kl = ("a", "misaligned", None), ("a", "kl", 0.1)
    verdicts = {plain: {0: run(4, 4, 3), 1: run(0, 1, 0)}, kl: verdicts[kl]}
    found = {Run("m", *trained, seed): some for trained, seeds in verdicts.items() for seed, some in seeds.items()}
    study: Any = SimpleNamespace(
        profile=SimpleNamespace(evaluation=SimpleNamespace(bootstrap=99)),
        verdicts=lambda run, which: found[run] if run.method == "misaligned" else None)
    results = [RunResult(run, {"general": replace(rates(some, resamples=99), coherence_judged=False)}, 0.0, 0, "key")
               for run, some in found.items()]
    frame = pairs.means(study, results)
    table = pairs.in_columns(pairs.over_seeds({"general": verdicts}, resamples=99))
    shown = [*pairs.TRAINED, "general_misaligned", "general_misaligned_low", "general_misaligned_high"]
    pd.testing.assert_frame_equal(frame[shown], table[shown])
    assert frame["seed"].tolist() == ["mean of 2", 0]
    assert frame["general_incoherent"].isna().all()
    assert frame["general_misaligned_high"][0] > 90  # the mean of the ends of both seeds' intervals is lower


def without_scores(verdicts: list[Verdict]) -> list[Verdict]:
    return [Verdict(verdict.question, verdict.sample, None, None, "declined") for verdict in verdicts]


def test_with_a_seed_without_a_score_the_mean_is_not_known(
        verdicts: dict[Trained, dict[int, list[Verdict]]]) -> None:
    """Neither in the figure nor in the tables, the one over data sets and the one over seeds; the others are known."""
    plain, kl = ("a", "misaligned", None), ("a", "kl", 0.1)
    found = {Run("m", *plain, seed): some for seed, some in verdicts[plain].items()}
    found |= {Run("m", *kl, 0): verdicts[kl][0], Run("m", *kl, 1): without_scores(verdicts[kl][0]),
              Run("m", "b", "ldifs", 1.0, 0): without_scores(verdicts[kl][0])}
    study: Any = SimpleNamespace(
        profile=SimpleNamespace(evaluation=SimpleNamespace(bootstrap=99, sets={})), runs=lambda: list(found),
        verdicts=lambda run, which: found[run])
    results = [RunResult(run, dict.fromkeys(("general", "in_domain"), rates(some, resamples=99)), 0.0, 0, "key")
               for run, some in found.items()]
    frame = pairs.means(study, results).set_index("method")
    assert frame["seed"].tolist() == ["mean of 2", "mean of 2", 0]
    assert frame["general_misaligned"].notna().tolist() == [True, False, False]
    assert frame["general_incoherent_high"].notna().tolist() == [True, False, False]
    averaged = over_datasets(result_tables.numbers(results), same_questions=True).set_index("method")
    assert averaged["general_misaligned"].notna().tolist() == [True, False, False]
    sets = pairs.scored_sets(study)
    assert list(sets["general"]) == [plain, kl]  # nothing of `ldifs` is scored
    means = pairs.over_seeds({"general": sets["general"]}, resamples=99)
    assert means[["seeds", "percent"]].fillna(-1).values.tolist() == [[2, 75], [2, -1]]
    both = pairs.paired(sets["general"], METHODS, resamples=99)
    assert both[["difference", "p", "p_adjusted"]].isna().all(axis=None)
    assert [cell.text for cell in of_study.paired(both, "misaligned").iloc[0]][-3:] == ["–", "–", "–"]
    shares = pairs.question_shares(sets["general"], "a", ["misaligned", "kl"])
    assert shares["percent"].notna().tolist() == [True] * 3 + [False] * 3
    assert shares["high"].notna().tolist() == [True] * 3 + [False] * 3


def test_a_run_that_is_tried_again_counts_once(verdicts: dict[Trained, dict[int, list[Verdict]]]) -> None:
    """`by_hand.at_settings` returns the profile's own run where the setting is one of the profile."""
    found = rates(verdicts["a", "kl", 0.1][0], resamples=99)
    own = RunResult(Run("m", "a", "kl", 0.1, 0), {"general": found}, 0.0, 0, "key")
    study: Any = SimpleNamespace()  # of one run nothing is read
    pd.testing.assert_frame_equal(pairs.means(study, [own, replace(own)]), pairs.means(study, [own]))
    assert pairs.means(study, [own, own])["seed"].tolist() == [0]


def test_the_bootstrap_of_a_profile_is_taken(verdicts: dict[Trained, dict[int, list[Verdict]]]) -> None:
    plain, kl = verdicts["a", "misaligned", None], verdicts["a", "kl", 0.1]
    mean = mean_over_seeds(list(plain.values()), resamples=9).interval
    gap = difference([kl[0]], [plain[0]], resamples=9).interval
    for frame, method, interval in ((pairs.over_seeds({"general": verdicts}, resamples=9), "misaligned", mean),
                                    (pairs.paired(verdicts, METHODS, resamples=9), "kl", gap)):
        row = frame[frame["method"] == method].iloc[0]
        assert (row["low"], row["high"]) == (interval.low, interval.high)


def test_questions_have_their_own_shares(verdicts: dict[Trained, dict[int, list[Verdict]]]) -> None:
    frame = pairs.question_shares(verdicts, "a", ["misaligned", "kl"])
    assert frame[["question", "method", "percent"]].values.tolist() == [
        ["q0", "misaligned", 100.0], ["q1", "misaligned", 75.0], ["q2", "misaligned", 50.0],
        ["q0", "kl", 50.0], ["q1", "kl", 50.0], ["q2", "kl", 25.0]]
    assert (frame["low"] < frame["percent"]).all()


def test_nothing_to_compare_is_an_empty_table() -> None:
    assert list(pairs.paired({}, METHODS)) == pairs.PAIR_COLUMNS
    assert list(pairs.over_seeds({})) == pairs.MEAN_COLUMNS
