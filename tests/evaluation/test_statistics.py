"""Intervals: Wilson's by its formula, and the bootstrap over questions where it can be reckoned by hand."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emlib.evaluation import statistics
from emlib.evaluation.statistics import Interval, OverSeeds, auroc, clustered, of_mean, over_seeds, welch, wilson


def near(low: float, high: float, *, within: float = 1e-6) -> Interval:
    return Interval(pytest.approx(low, abs=within), pytest.approx(high, abs=within))  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "asked"), [(3, 10), (0, 10), (10, 10), (607, 2400), (1, 1)])
def test_wilsons_interval_is_its_formula(count: int, asked: int) -> None:
    z, share = 1.959963984540054, count / asked  # the normal quantile of 0.975
    centre = share + z**2 / (2 * asked)
    half = z * sqrt(share * (1 - share) / asked + z**2 / (4 * asked**2))
    scale = 100 / (1 + z**2 / asked)
    assert wilson(count, asked) == near(scale * (centre - half), scale * (centre + half))


@pytest.mark.parametrize("asked", [1, 8, 10, 2400])
def test_wilsons_interval_of_none_and_of_all_ends_there(asked: int) -> None:
    assert wilson(0, asked).low == 0
    assert wilson(asked, asked).high == 100


def test_wilsons_interval_of_3_in_10() -> None:
    # z2 = 3.8415: (0.3 + 0.19207 -+ 1.95996 * sqrt(0.021 + 0.009604)) / 1.38415 = (0.49207 -+ 0.34287) / 1.38415
    assert wilson(3, 10) == near(10.78, 60.32, within=0.01)


@given(st.integers(1, 3000).flatmap(lambda asked: st.tuples(st.integers(0, asked), st.just(asked))))
def test_wilsons_interval_holds_the_share_and_mirrors(counted: tuple[int, int]) -> None:
    count, asked = counted
    interval, mirrored = wilson(count, asked), wilson(asked - count, asked)
    assert -1e-9 <= interval.low <= 100 * count / asked + 1e-9
    assert 100 * count / asked - 1e-9 <= interval.high <= 100 + 1e-9
    assert mirrored == near(100 - interval.high, 100 - interval.low)


def test_one_question_all_yes_and_one_all_no_leave_everything_open(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two draws of two questions: 0, 50, 50 or 100%, a quarter each. The middle 95% reach from 0 to 100.
    assert clustered([5, 0], [5, 5]) == Interval(0.0, 100.0)
    assert clustered([1000, 0], [1000, 1000]) == Interval(0.0, 100.0)  # more answers to the same questions do not help
    # The middle 40% lie between the quantiles 0.3 and 0.7, both of which are 50.
    monkeypatch.setattr(statistics, "ENDS", (0.3, 0.7))
    assert clustered([5, 0], [5, 5]) == Interval(50.0, 50.0)


def test_one_yes_in_three_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    # The number of yes in a draw is binomial(3, 1/3): 0 to 3 with 8, 12, 6, 1 of 27. 26/27 = 0.963 is between the
    # upper quantiles of 90% (0.95) and of 95% (0.975) confidence, and 8/27 is above both lower ones.
    assert clustered([1, 0, 0], [1, 1, 1]) == near(0, 100)
    monkeypatch.setattr(statistics, "ENDS", (0.05, 0.95))
    assert clustered([1, 0, 0], [1, 1, 1]) == near(0, 200 / 3)


def test_questions_asked_more_often_weigh_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 of 1 and 3 of 9: both draws of the first 1/1, of the second 6/18, mixed 4/10 and not the mean of the two shares.
    assert clustered([1, 3], [1, 9]) == near(100 / 3, 100)
    monkeypatch.setattr(statistics, "ENDS", (0.3, 0.7))
    assert clustered([1, 3], [1, 9]) == near(40, 40)


def test_with_one_answer_a_question_it_is_the_binomials_interval() -> None:
    # binomial(100, 0.3) has its quantiles 0.025 and 0.975 at 21 and 39.
    assert clustered([1] * 30 + [0] * 70, [1] * 100, resamples=4000) == near(21, 39, within=1)


def test_it_is_wider_than_wilsons_where_answers_to_a_question_agree() -> None:
    whole_questions = clustered([10] * 6 + [0] * 6, [10] * 12)
    independent = wilson(60, 120)
    assert whole_questions.low < independent.low - 10
    assert whole_questions.high > independent.high + 10


@pytest.mark.parametrize(("counts", "asked"), [([3], [10]), ([5] * 12, [10] * 12), ([0, 0], [4, 6]), ([4, 6], [4, 6]),
                                               ([1, 2], [2, 4])])
def test_a_single_question_or_questions_that_agree_have_wilsons_interval(counts: list[int], asked: list[int]) -> None:
    assert clustered(counts, asked) == wilson(sum(counts), sum(asked))


def test_the_same_counts_have_the_same_interval() -> None:
    counts, asked = list(range(24)), [100] * 24
    assert clustered(counts, asked, resamples=200) == clustered(counts, asked, resamples=200)


@given(st.lists(st.integers(1, 20).flatmap(lambda asked: st.tuples(st.integers(0, asked), st.just(asked))),
                min_size=1, max_size=6))
def test_any_interval_lies_between_the_questions_extremes_or_is_wilsons(groups: list[tuple[int, int]]) -> None:
    counts, asked = (list(side) for side in zip(*groups, strict=True))
    interval = clustered(counts, asked, resamples=50)
    shares = [100 * count / of for count, of in groups]
    if len(set(shares)) == 1:
        assert interval == wilson(sum(counts), sum(asked))
    else:
        assert min(shares) - 1e-9 <= interval.low <= interval.high <= max(shares) + 1e-9


def test_the_mean_of_two_questions_that_differ() -> None:
    # Two draws of two questions with means 0 and 1: 0, 0.5 (twice) or 1.
    assert of_mean([[0.0, 0.0], [1.0, 1.0]]) == Interval(0.0, 1.0)
    assert of_mean([[1.0, 2.0]]) is None
    assert of_mean([[2.0], [1.0, 3.0]]) is None  # whatever is drawn, the mean is 2


def test_two_samples_pair_by_pair() -> None:
    # The first is larger in three of four pairs. Of the six orders two have at least three, and two at most one.
    share, p = auroc([2.0, 3.0], [1.0, 2.5])
    assert share == 0.75
    assert p == pytest.approx(4 / 6)
    assert auroc([2.0, 3.0], [1.0, 2.0])[0] == 3.5 / 4


def test_five_seeds_by_hand() -> None:
    # 1..5: mean 3, squares of deviations 4+1+0+1+4 = 10, over n-1 = 4: sd = sqrt(2.5); t(0.975, 4) = 2.7764451
    found = over_seeds([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.deviation == pytest.approx(sqrt(2.5))
    half = 2.7764451051977987 * sqrt(2.5) / sqrt(5)
    assert found.interval == near(3 - half, 3 + half)
    assert found.seeds == 5


def test_one_seed_has_no_deviation_and_percentages_stay_within_0_and_100() -> None:
    assert over_seeds([40.68]) == OverSeeds(40.68, None, None, 1)
    assert over_seeds([0.0, 1.0]).interval == near(0, 0.5 + 12.706204736 * sqrt(0.5) / sqrt(2))
    assert over_seeds([99.0, 100.0]).interval.high == 100.0


def test_equal_seeds_have_no_interval() -> None:
    equal = over_seeds([40.68] * 3)
    assert (equal.mean, equal.deviation, equal.interval) == (pytest.approx(40.68), 0, None)
    assert welch(equal, OverSeeds(50.0, 0.0, None, 3)) is None
    assert welch(equal, OverSeeds(50.0, 1.0, None, 3)) == near(-9.32 - 4.3026527 / sqrt(3), -9.32 + 4.3026527 / sqrt(3))
