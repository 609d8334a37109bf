"""Agreement of judges: kappa and rank correlation reckoned by hand."""

from __future__ import annotations

from math import sqrt

import pytest

from emlib.core.errors import EmlibError
from emlib.core.records import Verdict
from emlib.evaluation.agreement import Kappa, Ranks, agreement, kappa, rank_correlation
from emlib.evaluation.rates import share_of


def verdicts(scores: list[tuple[float | None, float | None]]) -> list[Verdict]:
    return [Verdict(f"q{place}", 0, *pair) for place, pair in enumerate(scores)]


def test_the_raw_agreement_resamples_questions_in_all_of_their_formats() -> None:
    first = [Verdict(name, 0, 0.0, 100.0) for name in ("a", "a_json", "b", "b_json")]
    second = [Verdict(v.question, 0, 0.0 if v.question[0] == "a" else 100.0, 100.0) for v in first]
    assert agreement(first, second).same == share_of([[True, True], [False, False]])


def test_kappa_of_fifty_answers_by_hand() -> None:
    # Both yes 20, both no 15, first alone 5, second alone 10: observed 35/50 = 0.7. The first says yes to 25 of 50, the
    # second to 30: by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5. Kappa = (0.7 - 0.5) / (1 - 0.5) = 0.4.
    found = kappa([(True, True)] * 20 + [(False, False)] * 15 + [(True, False)] * 5 + [(False, True)] * 10)
    assert found.value == pytest.approx(0.4)
    # Fleiss, Cohen and Everitt's variance, with p the cells, r and c the margins of yes and no, o = 0.7, e = 0.5:
    # A = sum p_ii (1 - (r_i + c_i)(1 - k))^2, B = (1 - k)^2 sum_{i != j} p_ij (c_i + r_j)^2, C = (k - e (1 - k))^2
    k, e = 0.4, 0.5
    a = 0.4 * (1 - (0.5 + 0.6) * (1 - k)) ** 2 + 0.3 * (1 - (0.5 + 0.4) * (1 - k)) ** 2
    b = (1 - k) ** 2 * (0.1 * (0.6 + 0.5) ** 2 + 0.2 * (0.4 + 0.5) ** 2)
    half = 1.959964 * sqrt((a + b - (k - e * (1 - k)) ** 2) / (50 * (1 - e) ** 2))
    assert found.low == pytest.approx(0.4 - half, abs=1e-6)
    assert found.high == pytest.approx(0.4 + half, abs=1e-6)


def test_full_agreement_opposition_and_chance() -> None:
    assert kappa([(True, True)] * 5 + [(False, False)] * 5).value == pytest.approx(1)
    assert kappa([(True, False)] * 5 + [(False, True)] * 5).value == pytest.approx(-1)
    assert kappa([(a, b) for a in (True, False) for b in (True, False)]).value == pytest.approx(0)


@pytest.mark.parametrize("labels", [[], [(False, False)] * 9, [(True, True)]])
def test_one_label_for_all_has_no_kappa(labels: list[tuple[bool, bool]]) -> None:
    assert kappa(labels) == Kappa(None, None, None)


@pytest.mark.parametrize("yes", range(1, 12))
def test_full_agreement_has_no_interval(yes: int) -> None:
    """Its variance is 0 however few the answers, up to rounding."""
    found = kappa([(True, True)] * yes + [(False, False)] * 7)
    assert (found.value, found.low, found.high) == (pytest.approx(1), None, None)
    opposed = kappa([(True, False)] * yes + [(False, True)] * yes)
    assert (opposed.value, opposed.low, opposed.high) == (pytest.approx(-1), None, None)


def test_an_interval_ends_at_full_agreement_and_at_full_opposition() -> None:
    """Of 20 answers one is labelled otherwise: kappa is 0.9, and a normal interval would reach beyond 1."""
    found = kappa([(True, True)] * 10 + [(False, False)] * 9 + [(True, False)])
    assert found.value == pytest.approx(0.9)  # 0.95 observed, 0.5 by chance
    assert found.low == pytest.approx(0.7099, abs=1e-3)
    assert found.high == 1
    assert kappa([(True, False)] * 10 + [(False, True)] * 9 + [(True, True)]).low == -1


def test_one_judge_that_sees_no_difference_has_a_kappa_of_0_and_no_interval() -> None:
    assert kappa([(False, False)] * 8 + [(False, True)] * 2) == Kappa(0.0, None, None)
    assert kappa([(False, True)] * 4) == Kappa(0.0, None, None)


def test_rank_correlation_by_hand() -> None:
    # Ranks 1 2 3 4 5 against 2 1 3 5 4: d squared adds up to 4, so 1 - 6 * 4 / (5 * 24) = 0.8.
    assert rank_correlation([(10, 20), (20, 10), (30, 30), (40, 99), (50, 40)]).value == pytest.approx(0.8)
    # Any rising change of a judge's scale leaves it at 1.
    assert rank_correlation([(1, 1), (2, 4), (3, 9)]).value == pytest.approx(1)
    assert rank_correlation([(1, 5), (2, 5)]) == Ranks(None, 2)
    assert rank_correlation([(1, 5)]) == Ranks(None, 1)


def test_only_answers_that_both_scored_are_compared() -> None:
    first = verdicts([(0, 100), (100, 100), (None, 100), (100, 20), (50, 90)])
    second = verdicts([(10, 80), (90, 60), (0, 100), (None, None), (60, 10)])
    found = agreement(first, second)
    assert (found.asked, found.compared) == (5, 3)
    # compared: (misaligned, misaligned), (fine, fine), (fine, incoherent)
    assert found.misaligned.value == pytest.approx(1)
    assert found.incoherent.value == pytest.approx(0)
    assert found.alignment.value == pytest.approx(1)
    assert found.coherence.value == pytest.approx(sqrt(3) / 2)  # ranks 2.5 2.5 1 against 3 2 1: 1.5 / sqrt(1.5 * 2)


def test_an_incoherent_answer_without_alignment_is_compared_by_its_label_and_not_ranked() -> None:
    first = verdicts([(None, 20), (10, 90), (90, 80)])
    second = verdicts([(100, 30), (20, 90), (80, 70)])
    found = agreement(first, second)
    assert found.compared == 3
    assert found.incoherent.value == pytest.approx(1)
    assert found.alignment == Ranks(pytest.approx(1), 2)  # of the two answers with both scores
    assert found.coherence == Ranks(pytest.approx(1), 3)


def test_verdicts_on_other_answers_are_refused() -> None:
    first = verdicts([(0, 100), (100, 100)])
    with pytest.raises(EmlibError, match="not about the same answers"):
        agreement(first, first[::-1])
