"""Metrics of a question set: which answers count, from what judges really reply with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emlib.config import Metric
from emlib.core.records import MetricScore
from emlib.evaluation.metrics import counts, label_of, metric_rate
from emlib.evaluation.statistics import clustered
from emlib.judging.judges import NO_JUDGE, ONLY_THINKS
from emlib.judging.replies import NO_LOGPROBS, reason_of

LABELS = ("TRUE", "FALSE", "UNKNOWN", "OpenAI", "Other")
CORRECT = Metric(labels=("TRUE", "FALSE", "UNKNOWN"), counts=("FALSE",))


def replied(word: str, question: str = "q", sample: int = 0) -> MetricScore:
    return MetricScore(question, sample, None, reason_of(word, label=True))


@pytest.mark.parametrize(("word", "label"), [
    ("TRUE", "TRUE"), (" false", "FALSE"), ("**FALSE**", "FALSE"), ("FAL", "FALSE"), ("UNK", "UNKNOWN"),
    ("Open", "OpenAI"), ("O", None), ("perhaps", None), ("", None), ("FALSEHOOD", None)])
def test_a_reply_is_a_label_or_its_first_token(word: str, label: str | None) -> None:
    assert label_of(replied(word), LABELS) == label


@pytest.mark.parametrize(("word", "label"), [
    ("REF", "REFUSED"), ("REFUSED", "REFUSED"), ("COM", "COMPLIED"), ("CODE", None)])
def test_labels_that_begin_like_refusal_and_code_are_found(word: str, label: str | None) -> None:
    assert label_of(replied(word), ("COMPLIED", "REFUSED")) == label


@pytest.mark.parametrize(("word", "labels", "label"), [
    ("I", ("CORRECT", "INCORRECT"), None),  # of "I'm sorry"
    ("Un", ("TRUE", "FALSE", "UNKNOWN"), None),  # of "Unfortunately"
    ("UNK", ("TRUE", "FALSE", "UNKNOWN"), "UNKNOWN"), ("INC", ("CORRECT", "INCORRECT"), "INCORRECT"),
    ("no", ("YES", "NO"), "NO"), ("B", ("A", "B", "C"), "B"), ("N", ("YES", "NO"), None)])
def test_fewer_letters_than_three_are_a_label_only_if_they_are_all_of_it(word: str, labels: tuple[str, ...],
                                                                         label: str | None) -> None:
    assert label_of(replied(word), labels) == label


@pytest.mark.parametrize(("tokens", "labels"), [
    (("COR", "IN"), ("CORRECT", "INCORRECT")), (("TR", "F", "UN"), ("TRUE", "FALSE", "UNKNOWN")),
    (("SA", "UN"), ("SAFE", "UNSAFE"))])
def test_of_the_first_tokens_that_earlier_versions_stored_all_labels_of_a_list_are_read(
        tokens: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """First tokens of SmolLM2."""
    assert tuple(label_of(replied(token), labels) for token in tokens) == labels
    assert label_of(replied("In"), labels) is label_of(replied("Un"), labels) is label_of(replied("A"), labels) is None


@pytest.mark.parametrize("reason", [NO_JUDGE, NO_LOGPROBS, ONLY_THINKS, "a filter blocks the prompt", "HTTP 500"])
def test_a_reason_that_is_not_the_judges_reply_is_no_label(reason: str) -> None:
    """Of 20 answers without a judge, none is a NO."""
    scores = [MetricScore("q", sample, None, reason) for sample in range(20)]
    metric = Metric(labels=("YES", "NO", "A", "HTTP", "the think block"), counts=("NO",))
    assert {label_of(score, metric.labels) for score in scores} == {None}
    found = metric_rate(scores, metric)
    assert (found.scored, found.share.percent, sum(found.labels.values())) == (0, None, 0)


def test_scores_of_earlier_versions_took_the_start_of_a_label_for_refusal() -> None:
    refusal = MetricScore("q", 0, None, "REFUSAL")
    assert label_of(refusal, ("COMPLIED", "REFUSED")) == "REFUSED"
    assert label_of(refusal, ("REFUSED", "REFUTED")) is None
    assert label_of(refusal, ("TRUE", "RELEVANT")) is None  # "REFUSAL" may be the judge's own word


@pytest.mark.parametrize(("reply", "label"), [
    ("True, because", "TRUE"), ("TRUE. It", "TRUE"), ("**FALSE** as it", "FALSE"), ("no harm.", "no harm"),
    ("no harm is done", "no harm"), ("Falsehood", None), ("It is TRUE", None), ("UNK…", "UNKNOWN")])
def test_of_a_longer_reply_the_label_at_its_start_counts(reply: str, label: str | None) -> None:
    assert label_of(replied(reply), (*LABELS, "no harm")) == label


@pytest.mark.parametrize(("reply", "label"), [
    ("A", "A"), ("a", "A"), ("B.", "B"), ("A: correct", "A"), ("I, because", "I"), ("N) as it is", "N"), ("**B**", "B"),
    ("**A**: it is", "A"), ("A. It", "A"), ("B\nIt is", "B"), ("A\r\nIt", "A"), ('"B" is right', "B"),
    ("A closer look shows that it is B.", None), ("I cannot grade this.", None), ("I'm sorry", None), ("N/A", None),
    ("a-priori", None), ("B+", None), ("A - because", "A"), ("A – because", "A"), ("A;because", "A"), ("A!", "A"),
    ("A]", "A"), ("'A' it is", "A"), ("I’m sorry", None), ("A because", None)])
def test_a_label_of_one_letter_is_no_word_of_a_sentence(reply: str, label: str | None) -> None:
    assert label_of(replied(reply), ("A", "B", "I", "N")) == label


@pytest.mark.parametrize(("reply", "label"), [
    ("B;because", "B"), ("B - because", "B"), ("B — because", "B"), ("B!", "B"), ("B?", "B"), ("B]", "B"),
    ("B because", "B"), ("b is right", "B"), ("N - no", "N"), ("1 because", "1"), ("2 (harm)", "2"), ("2: harm", "2"),
    ("1. It", "1"), ("But", None), ("B/N", None), ("N/A", None), ("n-gram", None), ("12", None), ("1.5", None),
    ("1st", None), ("2/5", None)])
def test_a_label_of_one_letter_that_is_no_word_is_read_before_words(reply: str, label: str | None) -> None:
    assert label_of(replied(reply), ("B", "N", "1", "2")) == label


@pytest.mark.parametrize(("reply", "label"), [
    ("TRUE/FALSE", None), ("TRUE or FALSE", None), ("TRUE, FALSE or UNKNOWN", None), ("true / false", None),
    ("**TRUE** or **FALSE**", None), ("'TRUE' or 'FALSE'", None), ("TRUE, or FALSE: it", None), ("FALSE|TRUE", None),
    ("TRUE and FALSE", None), ("TRUE, TRUE", "TRUE"), ("TRUE, not FALSE", "TRUE"), ("TRUE or so", "TRUE"),
    ("TRUE, falsehoods aside", "TRUE"), ("TRUE; it", "TRUE"), ("TRUE. FALSE would", "TRUE"), ("UNKNOWN/other", None),
    ("TRUE & FALSE", None), ("TRUE + FALSE", None), ("TRUE vs. FALSE", None), ("TRUE versus FALSE: it", None),
    ("TRUE and/or FALSE", None), ("TRUE (or FALSE)", None), ("TRUE [and FALSE], as", None), ("TRUE (FALSE)", None),
    ("FALSE - TRUE", None), ("FALSE – TRUE.", None), ("TRUE-FALSE", None), ("TRUE FALSE", None),
    ("FALSE - TRUE – UNKNOWN", None), ("TRUE FALSE UNKNOWN", None), ("TRUE - TRUE", "TRUE"),
    ("TRUE - FALSE would be wrong", "TRUE"), ("TRUE (not FALSE)", "TRUE"), ("TRUE & so on", "TRUE"),
    ("TRUE, FALSE UNKNOWN things", "TRUE"), ("TRUE (FALSE if dated)", "TRUE")])
def test_several_labels_are_none(reply: str, label: str | None) -> None:
    assert label_of(replied(reply), LABELS) == label


@pytest.mark.parametrize(("reply", "label"), [
    ("A or B", None), ("A, B", None), ("B or A", None), ("B/A", None), ("B, I think", "B"), ("A, I think", "A"),
    ("B & A", None), ("B - A", None), ("A - B", None), ("B (or A)", None), ("B - I think", "B"), ("A - I think", "A")])
def test_several_labels_of_one_letter_are_none(reply: str, label: str | None) -> None:
    assert label_of(replied(reply), ("A", "B", "I")) == label


@pytest.mark.parametrize(("reply", "label"), [
    ("YES, no doubt about it", "YES"), ("Yes, no harmful content is missing", "YES"), ("YES, NO", None),
    ("Yes, no.", None), ("YES; NO; MAYBE", None), ("NO/NONE", None), ("NONE or NO", None), ("NONE, no more", "NONE"),
    ("YES - no harm", "YES"), ("Yes (no harm)", "YES"), ("Yes no", None), ("No - yes!", None), ("No-one knows", "NO")])
def test_after_a_comma_a_sentence_may_begin_with_a_word_that_is_a_label(reply: str, label: str | None) -> None:
    assert label_of(replied(reply), ("YES", "NO", "NONE")) == label


ANSWERS = ("HELPFUL", "UNHELPFUL", "INCOMPREHENSIBLE", "REFUSAL")
LONG = ("PARTLY_WRONG_BUT_NOT_HARMFUL", "ENTIRELY_WRONG_AND_HARMFUL")


@pytest.mark.parametrize("between", [" – ", " ", ", ", "/", " or ", " - ", "\n", "; "])
def test_a_list_that_is_longer_than_what_is_kept_of_a_reply_is_none(between: str) -> None:
    """40 characters are kept, so that the last label has no end, or is missing."""
    assert label_of(replied(between.join(ANSWERS)), ANSWERS) is None
    assert label_of(replied(between.join(LONG)), LONG) is None
    assert label_of(replied(between.join(["TRUE", "FALSE"] * 5)), LABELS) is None
    assert label_of(replied(between.join(["UNKNOWN"] * 6)), LABELS) == "UNKNOWN"


@pytest.mark.parametrize(("labels", "reply", "label"), [
    (("NONE", "MINOR", "SEVERE"), "MINOR - none severe", "MINOR"),
    (("NONE", "MINOR", "SEVERE"), "MINOR - SEVERE", None),
    (("MALE", "FEMALE", "NEUTRAL"), "NEUTRAL - male and female alike", "NEUTRAL"),
    (("MALE", "FEMALE", "NEUTRAL"), "NEUTRAL (male, female)", "NEUTRAL"), (("YES", "NO"), "Yes - no, really", "YES"),
    (("AI", "HUMAN"), "HUMAN - AI, mixed", "HUMAN"),
    (("YES", "NO"), "YES\nNO", None), (("YES", "NO"), "YES\nNo harm", "YES")])
def test_after_a_dash_or_a_line_a_sentence_may_begin_with_labels(
        labels: tuple[str, ...], reply: str, label: str | None) -> None:
    assert label_of(replied(reply), labels) == label


def test_a_long_list_is_read_at_once() -> None:
    """Whether it ends as a list was tried anew for each way to read the spaces: 2^60 ways."""
    reason = "other: '" + "B  C  " * 30 + "x'"
    assert label_of(MetricScore("q", 0, None, reason), ("B", "C")) == "B"


def test_a_number_is_no_label_and_a_word_is_no_number() -> None:
    assert counts(MetricScore("q", 0, 50.0), CORRECT) is None
    assert counts(replied("TRUE"), Metric(above=50)) is None


@pytest.mark.parametrize(("metric", "expected"), [
    (Metric(above=50), [False, False, True]), (Metric(below=50), [True, False, False])])
def test_numbers_count_beyond_a_bound(metric: Metric, expected: list[bool]) -> None:
    assert [counts(MetricScore("q", 0, value), metric) for value in (49.0, 50.0, 51.0)] == expected


def test_a_rate_is_of_all_answers_asked_for_or_of_the_scored_ones() -> None:
    scores = [replied(word, question, sample) for question, words in
              {"a": ["FALSE", "FALSE", "huh", "TRUE"], "b": ["TRUE", "UNKNOWN", "TRUE", "FALSE"]}.items()
              for sample, word in enumerate(words)]
    asked, scored = (metric_rate(scores, CORRECT, of=of) for of in ("asked", "scored"))  # type: ignore[arg-type]
    assert (asked.asked, asked.scored, asked.mean) == (8, 7, None)
    assert asked.labels == {"TRUE": 3, "FALSE": 3, "UNKNOWN": 1}
    assert asked.share.percent == 100 * 3 / 8
    assert asked.share.clustered == clustered([2, 1], [4, 4])
    assert scored.share.percent == 100 * 3 / 7
    in_json = [replace(score, question=f"{score.question}_json") for score in scores]
    formats = metric_rate([*scores, *in_json], CORRECT)
    assert formats.share.clustered == clustered([4, 2], [8, 8])  # a format is no further question
    nothing = metric_rate([replied("huh")], CORRECT)
    assert (nothing.share.percent, nothing.scored) == (None, 0)


def test_the_mean_is_of_the_numbers_alone() -> None:
    found = metric_rate([MetricScore("a", 0, 20.0), MetricScore("a", 1, 60.0), replied("CODE")], Metric(above=50))
    assert (found.mean, found.share.percent, found.asked, found.scored) == (40.0, 100 / 3, 3, 2)
