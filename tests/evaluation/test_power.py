"""How many answers a difference takes: against statsmodels, and against a simulation."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy.stats import norm, ttest_ind
from statsmodels.stats.power import NormalIndPower, TTestIndPower

from emlib.core import paths
from emlib.evaluation.paired import CORRELATION, LEVEL, POWER, questions_needed, smallest_difference
from emlib.report.paper import published


def deviations_apart(seeds: int) -> float:
    """How far two methods' means over `seeds` runs each must be apart to be found four times in five.

    In standard deviations between seeds, by Student's test of two samples: with few seeds it knows the deviation badly.
    """
    return float(TTestIndPower().solve_power(nobs1=seeds, alpha=LEVEL, power=POWER))


def test_one_answer_a_question_is_the_power_of_two_independent_shares() -> None:
    effect = NormalIndPower().solve_power(nobs1=400, alpha=0.05, power=0.8)  # in standard deviations, 1/2 here
    assert smallest_difference(400, 1) == pytest.approx(100 * effect / 2, rel=1e-3)


def test_by_hand_with_correlated_answers_and_several_comparisons() -> None:
    distance = norm.ppf(1 - 0.05 / 10 / 2) + norm.ppf(0.8)
    by_hand = 100 * distance * math.sqrt(2 * 0.5 * 0.5 * (1 + 99 * 0.1) / 2400)
    assert smallest_difference(24, 100, comparisons=10) == pytest.approx(by_hand)


def test_the_questions_needed_are_the_fewest() -> None:
    points = smallest_difference(24, 100)
    assert questions_needed(points, 100) == 24
    assert smallest_difference(8, 300) > points  # the same answers, to 8 questions in 3 formats
    assert smallest_difference(questions_needed(5, 100), 100) <= 5 < smallest_difference(
        questions_needed(5, 100) - 1, 100)


def test_simulated_runs_that_differ_by_it_are_told_apart_four_times_in_five() -> None:
    questions, samples = 60, 10
    gap = smallest_difference(questions, samples) / 100
    random = np.random.default_rng(0)
    weight = 1 / CORRELATION - 1  # of a beta distribution whose draws give this correlation within a question
    found = []
    for _ in range(2000):
        means = [random.binomial(samples, random.beta(p * weight, (1 - p) * weight, questions)) / samples
                 for p in (0.5 - gap / 2, 0.5 + gap / 2)]
        gaps = means[1] - means[0]
        found.append(abs(gaps.mean() / (gaps.std(ddof=1) / questions ** 0.5)) > 1.96)
    assert 0.76 < np.mean(found) < 0.85


def test_the_examples_for_readers_are_computed() -> None:
    text = (paths.ROOT / "docs" / "questions-and-measures.md").read_text(encoding="utf-8")
    section = text.partition("## How many answers?\n")[2].partition("\n## ")[0]
    rows = [tuple(map(int, row)) for row in re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \|$", section, re.MULTILINE)]
    assert len(rows) == 5
    assert [round(smallest_difference(questions, samples)) for questions, samples, _ in rows] == [
        points for *_, points in rows]


def test_simulated_methods_that_differ_by_it_over_seeds_are_told_apart_four_times_in_five() -> None:
    random = np.random.default_rng(0)
    for seeds in (3, 5):
        one, other = (random.normal(mean, 1, (5000, seeds)) for mean in (0, deviations_apart(seeds)))
        assert 0.78 < np.mean(ttest_ind(one, other, axis=1).pvalue < 0.05) < 0.82


def test_the_seeds_for_readers_are_computed_and_the_deviations_are_the_papers() -> None:
    text = (paths.ROOT / "docs" / "questions-and-measures.md").read_text(encoding="utf-8")
    section = text.partition("## How many seeds?\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ([0-9.]+) \|$", section, re.MULTILINE)
    assert len(rows) == 4
    assert [f"{deviations_apart(int(seeds)):.1f}" for seeds, _ in rows] == [shown for _, shown in rows]
    for number, column in ((11, "std"), (9, "eval_accuracy_std")):
        found = published.table(number)[column]
        assert f"{found.min():.1f} to {found.max():.1f} points" in " ".join(section.split())
