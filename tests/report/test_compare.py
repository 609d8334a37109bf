"""Ours beside the paper's: what is matched, the interval by hand, and what sampling explains."""

from __future__ import annotations

import pandas as pd
import pytest

from emlib.core.records import Verdict
from emlib.evaluation.rates import rates
from emlib.evaluation.statistics import wilson
from emlib.report.paper import compare, paper_tables, published
from emlib.report.tables import result_tables
from emlib.report.tables.averages import over_datasets
from emlib.report.tables.result_tables import MEASURES
from emlib.study.runs import Run, RunResult


def verdicts(misaligned: list[int], asked: int) -> list[Verdict]:
    return [Verdict(f"q{i}", sample, 10.0 if sample < count else 90.0, 80.0)
            for i, count in enumerate(misaligned) for sample in range(asked)]


def ours(general: list[int], in_domain: list[int], method: str = "misaligned", setting: float | None = None,
         model: str = "unsloth/Qwen2.5-7B-Instruct", dataset: str = "legal") -> pd.DataFrame:
    run = Run(model, dataset, method, setting, 0)
    found = RunResult(run, {"general": rates(verdicts(general, 100)), "in_domain": rates(verdicts(in_domain, 100))},
                      1, 1, "k")
    return result_tables.numbers([found])


def test_the_papers_own_rates_are_explained_and_others_are_not() -> None:
    """Table 2, Legal: 25.29% = 607 of 2,400 and 22.73% = 682 of 3,000."""
    same = compare.beside_paper(ours([25] * 17 + [26] * 7, [22] * 8 + [23] * 22), published.rates(2))
    misaligned = same[same["measure"].str.endswith("misaligned")].set_index("measure")
    assert misaligned["difference"].abs().max() < 0.01
    assert misaligned["sampling_explains"].all()
    twice = compare.beside_paper(ours([50] * 24, [23] * 30), published.rates(2)).set_index("measure")
    assert not twice.loc["general_misaligned", "sampling_explains"]
    assert twice.loc["general_misaligned", "difference"] == pytest.approx(50 - 25.29)


def test_the_interval_of_general_questions_by_hand() -> None:
    row = compare.beside_paper(ours([50] * 24, [23] * 30), published.rates(2)).set_index("measure").loc[
        "general_misaligned"]
    mine, theirs = wilson(1200, 2400), wilson(607, 2400)  # 25.29% of 2,400 is 606.96
    low = row["difference"] - ((50 - mine.low) ** 2 + (theirs.high - 25.29) ** 2) ** 0.5
    assert row["low"] == pytest.approx(low, abs=0.01)


def test_unequal_in_domain_questions_widen_both_sides() -> None:
    """All or nothing on each of 30 questions: the 3,000 answers are worth 30."""
    equal = compare.beside_paper(ours([25] * 24, [50] * 30), published.rates(2)).set_index("measure")
    apart = compare.beside_paper(ours([25] * 24, [100, 0] * 15), published.rates(2)).set_index("measure")
    width = (frame.loc["in_domain_misaligned", "high"] - frame.loc["in_domain_misaligned", "low"]
             for frame in (equal, apart))
    narrow, wide = width
    assert wide > 5 * narrow


def test_runs_match_by_model_data_set_method_and_setting() -> None:
    everything = published.rates()
    assert set(compare.beside_paper(ours([0] * 24, [0] * 30, "kl", 0.1), everything)["table"]) == {2, 12}
    assert set(compare.beside_paper(ours([0] * 24, [0] * 30, "interleaving", 0.05), everything)["table"]) == {2, 15}
    assert len(compare.beside_paper(ours([0] * 24, [0] * 30, "kl", 0.2), everything)) == 0
    assert len(compare.beside_paper(ours([0] * 24, [0] * 30, dataset="cooking"), everything)) == 0
    assert len(compare.beside_paper(ours([0] * 24, [0] * 30, model="SmolLM2-135M-Instruct"), everything)) == 0
    assert list(compare.beside_paper(ours([0] * 24, [0] * 30, "kl", 0.2), everything)) == compare.COLUMNS


def test_people_read_which_differences_need_another_reason() -> None:
    compared = compare.beside_paper(ours([50] * 24, [23] * 30), published.rates(2))
    text = paper_tables.markdown(compare.readable(compared))
    assert "**+24.71 [" in text
    assert "in-domain misaligned" in text
    assert r"\textbf{+24.71" in paper_tables.latex(compare.readable(compared))


def test_averages_are_over_complete_methods_and_count_a_run_once() -> None:
    frame = published.rates(2, 12)
    found = over_datasets(frame, same_questions=False).set_index(["method", "setting"])
    kl = found.loc[("kl", 0.1)]
    assert kl["general_misaligned"] == pytest.approx((0.38 + 2.21 + 1.58 + 2.04) / 4)  # Table 2's Legal, not 12's
    assert kl["datasets"] == 4
    lacking = frame[~((frame["dataset"] == "code") & (frame["method"] == "ldifs"))]
    without = over_datasets(lacking, same_questions=False).set_index("method").loc["ldifs"]
    assert without[list(MEASURES)].isna().all(axis=None)


def test_shared_questions_make_no_average_more_certain() -> None:
    """Four equal intervals: independent ones halve, and such with the same questions stay."""
    one = ours([25] * 12 + [75] * 12, [25] * 15 + [75] * 15)
    four = pd.concat([one.assign(dataset=name) for name in "abcd"], ignore_index=True)
    found = over_datasets(four, same_questions=True).iloc[0]
    single = one.iloc[0]
    for measure, factor in (("general_misaligned", 1), ("in_domain_misaligned", 2)):
        assert found[f"{measure}_high"] - found[measure] == pytest.approx(
            (single[f"{measure}_high"] - single[measure]) / factor)
    assert set(found.index) >= set(MEASURES)
