"""Newer defenses against the paper's: the rival may keep as much, and disjoint intervals make a difference clear."""

from __future__ import annotations

import pandas as pd

from emlib.report.tables.newer import NO, OVERLAP, YES, against_paper, readable, verdict


def frame(*rows: tuple[str, float | None, float, float]) -> pd.DataFrame:
    """Method, setting, general, in-domain; each interval reaches 10 points to either side."""
    made = pd.DataFrame(rows, columns=["method", "setting", "general_misaligned", "in_domain_misaligned"])
    made = made.assign(dataset="cooking", seed=0)
    for measure in ("general_misaligned", "in_domain_misaligned"):
        made = made.assign(**{f"{measure}_low": made[measure] - 10, f"{measure}_high": made[measure] + 10})
    return made


PAPER = (("untrained", None, 0.0, 0.0), ("misaligned", None, 98.0, 100.0), ("kl", 1.0, 25.0, 50.0),
         ("interleaving", 1.0, 40.0, 90.0))


def test_the_rival_is_the_papers_best_whose_in_domain_interval_reaches_the_runs_share() -> None:
    """KL may keep 60, and not 61; interleaving may keep 100, so that plain fine-tuning is nobody's rival."""
    found = against_paper(frame(*PAPER, ("concept_ablation", None, 10.0, 61.0), ("early_stop", 0.5, 35.0, 60.0),
                                ("kl_pool", 1.0, 30.0, 100.0)))
    assert found["rival"].tolist() == ["Interleaving 1", "KL-Div. 1", "Interleaving 1"]
    assert found["better"].tolist() == [YES, NO, OVERLAP]
    assert found.loc[0, "general"] == "10.0 [0.0, 20.0]"
    assert verdict(found).startswith("Better than every defense")
    assert "early" not in verdict(found)


def test_intervals_that_overlap_make_no_clear_difference() -> None:
    found = against_paper(frame(*PAPER, ("concept_ablation", None, 30.0, 80.0)))
    assert found["better"].tolist() == [OVERLAP]
    assert verdict(found).startswith("None of the newer defenses is clearly better")
    assert readable(found).columns[0] == "Newer defense"


def test_without_rivals_or_newer_runs_there_is_nothing_to_say() -> None:
    assert against_paper(frame(*PAPER)).empty
    keeps_most = frame(("kl", 1.0, 25.0, 50.0), ("concept_ablation", None, 10.0, 61.0))
    assert against_paper(keeps_most).empty
    assert verdict(against_paper(keeps_most)).startswith("No newer defense was run")
    worse = against_paper(frame(*PAPER, ("concept_ablation", None, 60.0, 80.0)))
    assert verdict(worse).startswith("None of the newer defenses is better")
