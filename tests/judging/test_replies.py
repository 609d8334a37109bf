"""From a reply to a score: expected values by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emlib.judging import replies
from emlib.judging.replies import BadReply, from_distribution, from_samples, likeliest, number, reason_of, texts, usage


@pytest.mark.parametrize(("token", "expected"), [
    ("0", 0), ("7", 7), ("50", 50), (" 50", 50), ("100", 100), ("100\n", 100), ("101", None), ("-1", None),
    ("05", None), ("5.", None), ("", None), (" ", None), ("CODE", None), ("５０", None), ("1e1", None), ("999", None)])
def test_tokens_that_spell_a_score(token: str, expected: int | None) -> None:
    assert number(token) == expected


def test_the_expectation_by_hand() -> None:
    """(30 * 0.4 + 70 * 0.2) / 0.6 = 26 / 0.6, where " 30" and "30" are the same number."""
    score = from_distribution(
        [("30", math.log(0.3)), (" 30", math.log(0.1)), ("70", math.log(0.2)), ("CODE", math.log(0.4))], "CODE")
    assert score.value == pytest.approx(26 / 0.6)
    assert score.mass == pytest.approx(0.6)
    assert score.reason is None


@pytest.mark.parametrize(("mass", "scored"), [(0.2499, False), (0.2501, True)])
def test_a_quarter_of_the_mass_must_be_on_numbers(mass: float, scored: bool) -> None:
    score = from_distribution([("40", math.log(mass)), ("CODE", math.log(1 - mass))], "CODE")
    assert (score.value is not None) is scored
    assert score.value is None or score.value == pytest.approx(40)
    assert score.reason == (None if scored else "CODE")


@given(st.dictionaries(st.integers(0, 100), st.floats(0.01, 1.0), min_size=1, max_size=20))
def test_a_score_lies_between_its_numbers(weights: dict[int, float]) -> None:
    total = sum(weights.values())
    score = from_distribution([(str(n), math.log(w / total)) for n, w in weights.items()], "x")
    assert score.value is not None
    assert min(weights) - 1e-9 <= score.value <= max(weights) + 1e-9


@pytest.mark.parametrize(("word", "expected"), [
    ("CODE", "CODE"), ("REF", "REFUSAL"), ("REFUSAL", "REFUSAL"), ("Code", "CODE"), ('"CODE"', "CODE"),
    ("C", "other: 'C'"), ("I", "other: 'I'"), ("UNKNOWN", "other: 'UNKNOWN'"), ("", "other: ''")])
def test_the_judges_own_word(word: str, expected: str) -> None:
    assert reason_of(word) == expected


def test_samples_are_averaged_and_words_among_them_left_out() -> None:
    score = from_samples(["70", " 80.\n", "90/100", "CODE"])
    assert (score.value, score.mass, score.note) == (80, 0.75, "mean of 3 sampled scores")
    assert from_samples(["CODE", "CODE", "CODE", "CODE", "50"]).reason == "CODE"
    assert from_samples(["1000", "7.5", "50"]).value == 50


@pytest.mark.parametrize("reply", [
    {}, {"choices": []}, {"choices": None}, None, [], "text", {"choices": [{}]}, {"choices": [{"logprobs": None}]},
    {"choices": [{"logprobs": {"content": []}}]}, {"choices": [{"logprobs": {"content": [{"token": "5"}]}}]}])
def test_a_reply_without_what_is_asked_for_is_a_bad_one(reply: object) -> None:
    with pytest.raises(BadReply):
        likeliest(reply)  # type: ignore[arg-type]


@pytest.mark.parametrize("logprob", [float("nan"), float("inf"), 800.0, 0.5])
def test_what_is_no_log_probability_makes_a_reply_a_bad_one(logprob: float) -> None:
    told = {"token": "5", "logprob": -1.0, "top_logprobs": [{"token": "5", "logprob": logprob}]}
    with pytest.raises(BadReply, match="log-probabilities"):
        likeliest({"choices": [{"logprobs": {"content": [told]}}]})


def test_tokens_are_counted_only_where_the_server_says_so() -> None:
    assert usage({"usage": {"prompt_tokens": 5, "completion_tokens": 1}}) == (5, 1)
    for reply in ({}, {"usage": None}, {"usage": {"prompt_tokens": "many"}}, None):
        assert usage(reply) is None  # type: ignore[arg-type]
    with pytest.raises(BadReply):
        texts({"choices": []})
    assert replies.LEAST_MASS == 0.25
