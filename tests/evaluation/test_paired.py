"""Paired comparisons and means over seeds: values by hand, and what must hold of any numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emlib.core.errors import DataError
from emlib.core.records import Verdict
from emlib.evaluation.over_seeds import count_table, crossed_bootstrap, mean_over_seeds
from emlib.evaluation.paired import Difference, adjusted, change_of_judge, difference, smallest_p
from emlib.evaluation.rates import rates
from emlib.evaluation.statistics import Interval, clustered, wilson

TABLES = st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=3)


def run(counts: Sequence[int], asked: int = 4) -> list[Verdict]:
    """`counts[i]` misaligned answers of `asked` to question i; the rest are aligned, and all coherent."""
    return [Verdict(f"q{i}", sample, 10.0 if sample < count else 90.0, 80.0)
            for i, count in enumerate(counts) for sample in range(asked)]


def in_formats(verdicts: Sequence[Verdict], size: int = 3) -> list[Verdict]:
    """The same verdicts, with each `size` neighbouring questions as one question in so many formats."""
    endings = ["", "_json", "_template"]
    found = [divmod(int(verdict.question.removeprefix("q")), size) for verdict in verdicts]
    return [replace(verdict, question=f"base{base}{endings[ending]}")
            for verdict, (base, ending) in zip(verdicts, found, strict=True)]


def test_the_table_is_seeds_by_questions() -> None:
    counts, asked = count_table([run([4, 0]), run([1, 2])], "misaligned")
    assert (counts.tolist(), asked.tolist()) == ([[4, 0], [1, 2]], [4, 4])
    assert count_table([run([4, 0])], "incoherent")[0].tolist() == [[0, 0]]


def test_the_formats_of_a_question_are_one_column() -> None:
    counts, asked = count_table([in_formats(run([4, 0, 1, 2, 3]))], "misaligned")
    assert (counts.tolist(), asked.tolist()) == ([[5, 5]], [12, 8])


def test_an_unscored_answer_stays_in_the_denominator() -> None:
    verdicts = [*run([2], asked=3), Verdict("q0", 3, None, None, "no answer from the judge")]
    counts, asked = count_table([verdicts], "misaligned")
    assert (counts.tolist(), asked.tolist()) == ([[2]], [4])


def test_a_run_without_a_score_has_no_share_and_not_one_of_zero() -> None:
    """Against 100% it would be 100 points fewer, with p 2/256."""
    whole, unscored = run([4] * 8), [replace(verdict, alignment=None, coherence=None) for verdict in run([0] * 8)]
    mean = mean_over_seeds([whole, unscored])
    assert (math.isnan(mean.percent), math.isnan(mean.interval.low), mean.seeds) == (True, True, 2)
    for pair in (([whole], [unscored]), ([unscored], [whole])):
        found = difference(*pair)
        assert all(map(math.isnan, (found.points, found.interval.low, found.interval.high, found.p)))
    known = difference([whole], [run([0] * 8)])
    ps = adjusted([found, known, known])  # the first is no comparison
    assert math.isnan(ps[0])
    assert ps[1:] == [2 * known.p] * 2
    some = [*unscored[:-1], replace(unscored[-1], alignment=90.0, coherence=80.0)]
    assert mean_over_seeds([whole, some]).percent == 50


def test_mean_over_seeds_by_hand() -> None:
    """Shares (1, 0) and (1/4, 1/2): their mean is 43.75%; drawing can give no less than 0 and no more than 100."""
    found = mean_over_seeds([run([4, 0]), run([1, 2])])
    assert (found.percent, found.seeds, found.questions) == (43.75, 2, 2)
    assert found.interval.low == 0
    assert found.interval.high == 100


def test_where_all_agree_the_interval_is_wilsons() -> None:
    assert mean_over_seeds([run([1, 1]), run([1, 1])]).interval == wilson(4, 16)


def test_one_seed_of_the_bootstrap_over_both_is_that_over_questions() -> None:
    counts = [0, 1, 4, 2, 3, 0, 4, 1]
    ours = crossed_bootstrap(*count_table([run(counts)], "misaligned"), 20_000)
    theirs = clustered(counts, [4] * 8, resamples=20_000)
    assert ours is not None
    assert ours.low == pytest.approx(theirs.low, abs=1.5)
    assert ours.high == pytest.approx(theirs.high, abs=1.5)


def test_one_seed_has_the_interval_of_its_rates() -> None:
    verdicts = in_formats(run([0, 1, 4, 2, 3, 0, 4, 1, 1]))
    found = mean_over_seeds([verdicts], resamples=300)
    share = rates(verdicts, resamples=300).misaligned
    assert (found.percent, found.interval, found.questions) == (share.percent, share.clustered, 3)


def test_questions_with_more_answers_count_for_more() -> None:
    """Counts (4 of 4, 0 of 8): a third, and not the half that a mean over questions would be."""
    verdicts = in_formats([*run([4]), *(replace(one, question=f"q{3 + number}")
                                        for number in (0, 1) for one in run([0]))])
    assert mean_over_seeds([verdicts, verdicts]).percent == pytest.approx(100 / 3)
    without = in_formats(run([0]))
    assert difference([verdicts], [without + verdicts[4:]]).points == pytest.approx(100 / 3)


def test_seeds_that_differ_widen_the_interval() -> None:
    asked = np.array([5] * 4)
    same = crossed_bootstrap(np.array([[1, 2, 3, 2]] * 3), asked, 2000)
    apart = crossed_bootstrap(np.array([[1, 2, 3, 2]] * 3) + np.array([[-1], [0], [1]]), asked, 2000)
    assert same is not None
    assert apart is not None
    assert apart.high - apart.low > 1.3 * (same.high - same.low)


def test_a_difference_by_hand() -> None:
    """Per question +25, +50, +25 points: 33.3. All signs alike has 2 of 8 sign patterns as extreme: p = 1/4."""
    found = difference([run([2, 4, 3])], [run([1, 2, 2])])
    assert found.points == pytest.approx(100 / 3)
    assert found.p == 0.25
    assert (found.interval.low, found.interval.high) == (25, 50)
    assert (found.seeds, found.questions) == (1, 3)


def test_three_formats_of_eight_questions_are_eight_with_three_times_the_answers() -> None:
    ours, theirs = [3, 4, 1, 2, 4, 4, 0, 3], [1, 0, 1, 0, 2, 4, 1, 1]
    thrice = [in_formats(run(np.repeat(counts, 3).tolist())) for counts in (ours, theirs)]
    once = [run([3 * count for count in counts], asked=12) for counts in (ours, theirs)]
    assert difference([thrice[0]], [thrice[1]]) == difference([once[0]], [once[1]])
    assert difference([thrice[0]], [thrice[1]]).questions == 8


def test_p_of_eight_questions_in_three_formats_is_that_of_all_2_to_the_8_signs() -> None:
    method, reference = run([4, 3, 2] * 8), run([1, 1, 0] * 8)
    assert difference([in_formats(method)], [in_formats(reference)]).p == 2 / 256  # all signs alike: the smallest p
    assert difference([method], [reference]).p < 2 / 256  # as 24 different questions
    ours, theirs = [4, 3, 0, 2, 4, 1, 3, 0], [1, 1, 2, 0, 1, 2, 3, 0]
    gaps = [4 * (one - other) for one, other in zip(ours, theirs, strict=True)]
    sums = [sum(sign * gap for sign, gap in zip(signs, gaps, strict=True)) for signs in product((1, -1), repeat=8)]
    by_hand = min(1.0, 2 * sum(one >= sum(gaps) for one in sums) / 256)
    both = [in_formats(run(np.repeat(counts, 3).tolist())) for counts in (ours, theirs)]
    found = difference(both[:1], both[1:])
    assert found.p == pytest.approx(by_hand)
    assert 0.05 < by_hand < 0.5


def test_strong_differences_stay_significant_in_a_large_table() -> None:
    """48 questions all change one way; 600 such comparisons are one family. p is that of random patterns of signs."""
    found = difference([run([4] * 48)], [run([0] * 48)])
    assert found.p == smallest_p(48) == 1 / 100_001
    assert max(adjusted([found] * 600)) < 0.05
    assert smallest_p(8) == 2 / 256
    mixed = difference([run([4] * 9 + [0] * 6)], [run([0] * 9 + [4] * 6)]).p  # the sum of 15 signs is 3
    assert mixed == pytest.approx(sum(math.comb(15, more) for more in range(16) if abs(2 * more - 15) >= 3) / 2**15,
                                  abs=0.01)


def test_a_change_of_judge_resamples_questions_in_all_of_their_formats() -> None:
    first, second = run([4, 4, 4, 0, 0, 0], asked=4), run([0, 0, 0, 0, 0, 0], asked=4)
    found = change_of_judge(in_formats(first), in_formats(second), "misaligned")
    assert (found.low, found.high) == (-100, 0)  # two questions, of which a resample may have one alone
    assert change_of_judge(first, second, "misaligned").low > -100


def test_an_equal_change_in_all_questions_has_newcombes_interval() -> None:
    """One of two answers to each of 4 questions becomes misaligned: 50 points, and 0 of 8 beside 4 of 8 by Newcombe."""
    found = change_of_judge(run([0] * 4, asked=2), run([1] * 4, asked=2), "misaligned")
    assert found == difference([run([4], asked=8)], [run([0], asked=8)]).interval
    assert found.low < 50 < found.high


def test_without_answers_a_change_of_judge_is_not_known() -> None:
    found = change_of_judge([], [], "misaligned")
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_pairing_removes_what_questions_share() -> None:
    """Questions range from 0 to 80%, the methods differ by 10 or 20 on each: the interval knows no ranges but these."""
    found = difference([run([2, 5, 7, 10], asked=10)], [run([0, 4, 5, 9], asked=10)])
    assert found.points == pytest.approx(15)
    assert found.interval.low >= 10 - 1e-9
    assert found.interval.high <= 20 + 1e-9


def test_equal_differences_have_newcombes_interval() -> None:
    found = difference([run([2, 2])], [run([1, 1])])
    assert found.points == 25
    assert found.interval.low < 25 < found.interval.high


def test_a_method_does_not_differ_from_itself() -> None:
    found = difference([run([1, 3, 0])], [run([1, 3, 0])])
    assert (found.points, found.p) == (0, 1)
    assert found.interval.low < 0 < found.interval.high


@given(TABLES)
def test_swapping_turns_the_sign_and_nothing_else(counts: list[list[int]]) -> None:
    method, reference = [run(row) for row in counts], [run([2, 0, 4, 1, 3]) for _ in counts]
    one, other = difference(method, reference, resamples=200), difference(reference, method, resamples=200)
    assert one.points == pytest.approx(-other.points)
    assert one.p == pytest.approx(other.p)
    assert -other.interval.high == pytest.approx(one.interval.low, abs=1e-6)


def test_holm_by_hand() -> None:
    """0.01 x 3, 0.02 x 2, 0.9 x 1; and 0.04 x 1 is lifted to the 0.06 before it."""
    def with_p(*values: float) -> list[Difference]:
        return [Difference(0.0, Interval(0, 0), p, 1, 8) for p in values]

    assert adjusted(with_p(0.9, 0.01, 0.02)) == pytest.approx([0.9, 0.03, 0.04])
    assert adjusted(with_p(0.03, 0.04)) == pytest.approx([0.06, 0.06])
    assert adjusted([]) == []


def test_other_questions_or_seeds_are_refused() -> None:
    with pytest.raises(DataError, match="'q1' 4 times, and the first list 0 times"):
        difference([run([1])], [run([1, 2])])
    with pytest.raises(DataError, match=r"2 runs .* 1 of the reference"):
        difference([run([1]), run([2])], [run([1])])
    with pytest.raises(DataError, match="no verdicts"):
        mean_over_seeds([])
