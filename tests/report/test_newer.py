"""Newer defenses against the paper's: better takes fewer misaligned general answers, and not fewer in-domain."""

from __future__ import annotations

from itertools import product

import pandas as pd

from emlib.report.tables.newer import EQUAL, LESS, NO, PERHAPS, WITHIN, YES, against_paper, readable, verdict


def frame(*rows: tuple[str, float | None, float, float]) -> pd.DataFrame:
    """Method, setting, general, in-domain; each interval reaches 10 points to either side."""
    made = pd.DataFrame(rows, columns=["method", "setting", "general_misaligned", "in_domain_misaligned"])
    made = made.assign(dataset="cooking", seed=0)
    for measure in ("general_misaligned", "in_domain_misaligned"):
        made = made.assign(**{f"{measure}_low": made[measure] - 10, f"{measure}_high": made[measure] + 10})
    return made


PAPER = (("untrained", None, 0.0, 0.0), ("misaligned", None, 98.0, 100.0), ("kl", 1.0, 25.0, 50.0),
         ("interleaving", 1.0, 40.0, 90.0))
NONE = "No newer defense clearly beats the best of the paper's methods that may keep as much of the narrow task."
BRACKETS = "In brackets: general/in-domain misaligned. The paper's best here:"


def test_the_rival_is_the_papers_best_whose_in_domain_interval_does_not_lie_below_the_runs() -> None:
    """By hand, every interval 10 to either side. KL keeps 40 to 60, and interleaving 80 to 100."""
    found = against_paper(frame(*PAPER, ("concept_ablation", None, 12.0, 71.0), ("early_stop", 0.5, 35.0, 60.0),
                                ("kl_pool", 1.0, 30.0, 100.0), ("consistency", None, 4.0, 69.0)))
    assert found["rival"].tolist() == ["interleaving 100%", "kl 1", "interleaving 100%", "kl 1"]
    assert found["better"].tolist() == [WITHIN, NO, PERHAPS, YES]  # 71 below 90; 35 above 25; 30 and 40; 4 and 25
    assert found.loc[0, ["general", "rival's in-domain"]].tolist() == ["12.0 [2.0, 22.0]", "90.0 [80.0, 100.0]"]
    assert verdict(found).startswith(
        "None is shown to be better: single runs cannot show it. Worth three seeds, with an interval apart from that "
        "of the best of the paper's methods that may keep as much of the narrow task: `consistency` (4.0/69.0%; ")
    assert verdict(found).endswith(
        "`kl 1`: 25.0/50.0%). Ahead, but the intervals overlap: `kl_pool 1` (30.0/100.0%; `interleaving 100%`: "
        "40.0/90.0%). Fewer general misaligned, but perhaps less of the narrow task kept: `concept_ablation` "
        f"(12.0/71.0%). {BRACKETS} `interleaving 100%` (40.0/90.0%), `kl 1` (25.0/50.0%).")


def test_a_run_that_learns_nothing_is_not_better_however_few_general_answers_are_misaligned() -> None:
    """It keeps 0 to 14 of the narrow task, and what keeps least of the paper's 40 to 60: a model that was not trained
    would do as well."""
    found = against_paper(frame(*PAPER, ("concept_ablation", None, 0.0, 4.0)))
    assert found["rival"].tolist() == ["kl 1"]
    assert found["better"].tolist() == [LESS]
    assert verdict(found) == (
        f"{NONE} Fewer general misaligned, but less of the narrow task kept: `concept_ablation` (0.0/4.0%). "
        f"{BRACKETS} `kl 1` (25.0/50.0%).")


def test_a_better_run_is_worse_on_neither_side_and_better_on_one() -> None:
    """KL has 25 and 50. Two runs keep less, however little; one is equal on both sides; one keeps more at as many."""
    found = against_paper(frame(*PAPER, ("concept_ablation", None, 4.0, 49.0), ("consistency", None, 24.0, 41.0),
                                ("early_stop", 0.5, 4.0, 50.0), ("kl_pool", 1.0, 25.0, 50.0),
                                ("safe_lora", 1.0, 25.0, 69.0), ("inoculation_adapter", None, 26.0, 69.0)))
    assert found["better"].tolist() == [WITHIN, WITHIN, YES, EQUAL, PERHAPS, NO]
    assert " Equal: `kl_pool 1` (25.0/50.0%). " in verdict(found)


def test_a_grade_of_some_runs_says_of_how_many() -> None:
    """Clearly better with one seed, worse with the next, and keeping less with the last two."""
    seeds = [frame(*PAPER, ("concept_ablation", None, general, in_domain)).assign(seed=seed)
             for seed, (general, in_domain) in enumerate(((4.0, 51.0), (40.0, 51.0), (4.0, 41.0), (4.0, 42.0)))]
    found = against_paper(pd.concat(seeds))
    assert found["better"].tolist() == [YES, NO, WITHIN, WITHIN]
    assert "`concept_ablation` (4.0/51.0%; `kl 1`: 25.0/50.0%; in 1 of 4 runs). " in verdict(found)
    assert "of the narrow task kept: `concept_ablation` (4.0/41.0%, 4.0/42.0%; in 2 of 4 runs). " in verdict(found)


def test_a_run_that_one_of_the_paper_dominates_is_not_better_though_another_overlaps_it() -> None:
    """inoculation has 1/60 and keeps clearly more than 8/30; kl alone, 20/29, overlaps in-domain. Of 0/60 and 0/42, two
    equals, the rival is the one that keeps more."""
    found = against_paper(frame(("kl", 0.1, 20.0, 29.0), ("inoculation", None, 1.0, 60.0),
                                ("concept_ablation", None, 8.0, 30.0)))
    assert found[["rival", "better"]].to_numpy().tolist() == [["inoculation", NO]]
    tie = frame(("kl", 0.1, 0.0, 42.0), ("inoculation", None, 0.0, 60.0), ("concept_ablation", None, 0.0, 50.0))
    assert against_paper(tie)[["rival", "better"]].to_numpy().tolist() == [["inoculation", NO]]


def test_the_order_in_the_profile_decides_nothing_and_no_better_run_is_dominated() -> None:
    """All pairs of the paper's runs on a grid, in both orders, beside one newer run at 20/50."""
    grid = list(product((10.0, 20.0, 40.0), (35.0, 50.0, 65.0, 75.0)))
    for one, other in product(grid, grid):
        runs = [("kl", 0.1, *one), ("kl", 1.0, *other)]
        first, second = (against_paper(frame(*order, ("concept_ablation", None, 20.0, 50.0)))
                         for order in (runs, runs[::-1]))
        pd.testing.assert_frame_equal(first, second)
        dominated = any(general <= 20 and kept >= 50 and (general, kept) != (20, 50) for general, kept in (one, other))
        assert not (dominated and first["better"].isin([YES, PERHAPS, EQUAL]).any()), (one, other)


def test_intervals_that_overlap_make_no_clear_difference() -> None:
    found = against_paper(frame(*PAPER, ("concept_ablation", None, 30.0, 90.0)))
    assert found["better"].tolist() == [PERHAPS]
    assert verdict(found).startswith(NONE)
    assert readable(found).columns[0] == "Newer defense, setting"


def test_without_rivals_or_newer_runs_there_is_nothing_to_say() -> None:
    assert against_paper(frame(*PAPER)).empty
    keeps_most = frame(("kl", 1.0, 25.0, 50.0), ("concept_ablation", None, 10.0, 71.0))
    assert against_paper(keeps_most).empty
    assert verdict(against_paper(keeps_most)).startswith("No newer defense was run")
    worse = against_paper(frame(*PAPER, ("concept_ablation", None, 60.0, 90.0)))
    assert verdict(worse) == NONE
