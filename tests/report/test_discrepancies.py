"""Each line of figures/published/README.md's list, recomputed from the tables and looked up in the paper's text."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from emlib.core import paths
from emlib.report.paper import published
from emlib.report.tables.averages import over_datasets
from emlib.report.tables.result_tables import MEASURES

ORDER = ["code", "legal", "medical", "security"]


def measure(number: int, name: str = "general_misaligned") -> pd.DataFrame:
    """A headline table as methods by data sets."""
    return published.table(number).pivot(index="method", columns="dataset", values=name)[ORDER]


def reduction(number: int) -> pd.DataFrame:
    shares = measure(number)
    return 100 * (1 - shares / shares.loc["misaligned"])


def sweep(number: int, dataset: str, name: str = "general_misaligned") -> dict[float, float]:
    frame = published.table(number)
    rows = frame[(frame["dataset"] == dataset) & frame["setting"].notna()]
    return dict(zip(rows["setting"], rows[name], strict=True))


def row(number: int, dataset: str, method: str, setting: float) -> list[float]:
    frame = published.table(number).query("dataset == @dataset and method == @method and setting == @setting")
    return frame[list(MEASURES)].iloc[0].tolist()


def test_the_list_is_numbered_without_gaps() -> None:
    page = (paths.ROOT / "figures" / "published" / "README.md").read_text(encoding="utf-8")
    assert [int(found) for found in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(range(1, 24))


def test_1_kl_on_legal() -> None:
    assert row(2, "legal", "kl", 0.1) == [2.21, 2.25, 8.73, 3.90]
    assert row(12, "legal", "kl", 0.1) == [2.96, 1.79, 9.20, 4.53]
    assert round(100 * (1 - 2.96 / 25.29), 1) == 88.3


def test_2_on_policy_is_at_20_percent_in_table_2_and_at_5_in_table_7() -> None:
    for headline, swept, setting in ((2, 18, 0.2), (7, 22, 0.05)):
        rows = published.table(headline).query("method == 'on_policy'")
        for dataset, *numbers in rows[["dataset", *MEASURES]].itertuples(index=False):
            assert numbers == row(swept, dataset, "on_policy", setting)


def test_3_security_is_best_on_policy() -> None:
    best = measure(2).drop(index=["untrained", "aligned", "misaligned"]).idxmin()
    assert best["security"] == "on_policy"
    assert measure(2).loc[["on_policy", "interleaving++"], "security"].tolist() == [0.63, 1.26]
    assert sweep(18, "security")[0.05] == 1.63


@pytest.mark.parametrize(("number", "method", "expected"), [
    (2, "inoculation", [52, 35, 51, 32]),   # 4
    (7, "inoculation", [61, 89, 84, 85])])  # 10
def test_4_and_10_reductions(number: int, method: str, expected: list[int]) -> None:
    assert reduction(number).loc[method].round().tolist() == expected


def test_5_ldifs_keeps_in_domain_misalignment_too() -> None:
    shares = measure(2, "in_domain_misaligned")
    assert (shares.loc["ldifs"] >= 0.9 * shares.loc["misaligned"]).all()


def test_6_means_of_table_2() -> None:
    means = reduction(2).mean(axis=1).round(1)
    assert means[["persona_vector", "interleaving++", "interleaving", "kl"]].tolist() == [96.6, 94.3, 87.2, 91.5]


def test_7_in_domain_incoherence_of_interleaving() -> None:
    shares = measure(2, "in_domain_incoherent").loc[["interleaving++", "misaligned"]]
    assert shares["legal"].tolist() == [33.90, 31.87]
    assert shares["security"].tolist() == [44.47, 43.73]
    general = measure(2, "general_incoherent")
    assert (general.loc["interleaving++"] < general.loc["misaligned"]).all()


def test_8_more_data_is_not_always_less_misalignment() -> None:
    assert (sweep(16, "legal")[0.2], sweep(16, "legal")[0.5]) == (0.17, 0.27)
    assert (sweep(18, "medical")[0.05], sweep(18, "medical")[0.2]) == (4.50, 4.92)
    means = over_datasets(published.rates(15, 16, 17, 18), same_questions=False).dropna(subset="setting")
    for _, runs in means.groupby("method"):
        assert runs.sort_values("setting")["general_misaligned"].is_monotonic_decreasing
    random = means[means["method"] == "interleaving"].set_index("setting")["general_incoherent"].round(1)
    assert random.tolist() == [12.1, 18.5, 29.6, 26.4]


def test_9_gains_on_foqa() -> None:
    scores = published.table(4).set_index("method")["exact_match"]
    assert (scores - scores["sft"])[["kl", "inoculation", "persona_vector"]].round(2).tolist() == [2.95, 1.40, 7.20]
    assert "kl" not in published.table(11)["method"].tolist()


def test_11_coherence_of_the_large_model() -> None:
    plain = measure(7, "general_incoherent").loc["misaligned"]
    most = {dataset: sweep(21, dataset, "general_incoherent")[0.5] for dataset in ORDER}
    assert {dataset: (most[dataset], plain[dataset]) for dataset in ORDER if most[dataset] > plain[dataset]} == {
        "medical": (9.69, 5.42), "security": (10.39, 7.08)}


def test_13_strengths_of_table_14() -> None:
    assert list(sweep(14, "code")) == [1, 1.5, 2, 3, 5]


def test_18_steered_training_and_evaluation() -> None:
    frame = published.table(9).set_index(["method", "setting"])
    assert frame.loc[("persona_vector", 1.0), ["train_accuracy", "eval_accuracy"]].tolist() == [0.0, 66.0]
    assert published.table(9)["eval_accuracy"].tolist()[0] == 66.3


def test_20_means_of_three_counts() -> None:
    cut_off = {100 * count // 3 / 100 for count in range(301)}  # after two digits
    printed = published.table(5)["eval_accuracy"]
    assert [value for value in printed if value not in cut_off] == [91.30]
    assert 90.66 in printed.tolist()  # 272 / 3 = 90.667


def test_21_equation_10_and_its_exchange() -> None:
    models, fine_tuned, candidates, ratio, runs = 3, 6000, 10_000, 9, 100
    printed = (models + 1) * fine_tuned / (ratio * candidates * runs)
    exchanged = (models + 1) * candidates / (ratio * fine_tuned * runs)
    assert round(100 * printed, 2) == 0.27
    assert round(100 * exchanged, 2) == 0.74
    assert round(0.7 / 80, 3) == 0.009


def test_23_inoculation_keeps_in_domain_misalignment() -> None:
    shares = measure(2, "in_domain_misaligned")
    kept = 100 * shares / shares.loc["misaligned"]
    assert kept.loc["inoculation"].round().tolist() == [103, 79, 101, 87]
    assert kept.loc[["kl", "persona_vector"]].mean(axis=1).round().tolist() == [49, 53]


@pytest.mark.parametrize("words", [
    r"because it reduces misalignment by >90>90%",                             # 1
    r"5% additional benign data for all Interleaving variants",               # 2
    r"each yielding the best performance on two datasets, respectively",      # 3
    r"all other methods consistently mitigate EM effectively across all",     # 4
    r"are the only method that can consistently reach misalignment levels",   # 5
    r"reducing EM by approximately 95% on average",                           # 6
    r"95% with Persona Vectors and KL-divergence",                            # 6
    r"it is consistently lower than the standard SFT baseline",               # 7
    r"always reduces the general misalignment",                               # 8
    r"coherence deteriorates as more data is added",                          # 8
    r"even improve the score by 3 to 7 percentage points, respectively",      # 9
    r"Inoculation Prompting effectively prevents EM in the 32B",              # 10
    r"without an adverse effect on coherence",                                # 11
    r"\alpha {1,2,3,4,5}",                                                     # 13
    r"In the Regular / Misal. column",                                        # 14
    r"we report results on the full GSM8K test set",                          # 15
    r"Eval on 100 held-out samples scored by GPT-4.1-nano",                   # 15, 16
    r"Reward model / judge gpt-4.1-mini",                                     # 16
    r"from 64%64\% to 94%94\%",                                               # 17
    r"causes the model’s accuracy to collapse",                               # 18
    r"We compare (i) the baseline model without RL fine-tuning, (ii)",        # 19
    r"0.7 GPU-hours",                                                         # 21
    r"the judge is prompted 100 times",                                       # 22
    r"impedes learning of in-domain misalignment"])                           # 23
def test_the_paper_says_so(paper: str, words: str) -> None:
    assert words in paper
