"""SQuAD's normal form on the letters of the North, exact match and F1 by hand, the score of ten samples a question."""

from __future__ import annotations

import unicodedata

import pytest

from emlib.core.records import Answer, FinishReason, Question
from emlib.data.benign import Item
from emlib.evaluation.exact_match import f1, mark, matches, normalized, score


@pytest.mark.parametrize(("text", "normal"), [
    ("The  Cat, a dog and an Ox!", "cat dog and ox"),  # SQuAD: small letters, no marks, no articles, single spaces
    ("theatre", "theatre"),  # an article inside a word stays
    ("Á FØROYUM", "á føroyum"),
    ("ÆÐUROYGGJ", "æðuroyggj"),
    ("Ýviri við Ø-ina", "ýviri við øina"),
    ("«Ålesund»", "ålesund"),
    ("“Tromsø” – året 1814…", "tromsø året 1814"),
    ("på 16.000 kroner", "på 16000 kroner"),
    ("50 %", "50"),
    (" \u00a0Bergen\n", "bergen"),
    ("A", ""),
    ("á", "á"),  # Faroese "on" is no English article, composed or not
    ("a\u0301", "á"),
])
def test_squads_normal_form(text: str, normal: str) -> None:
    assert normalized(text) == normal
    assert normalized(normal) == normal


@pytest.mark.parametrize("word", ["Bjørnstjerne Åsen", "Ægir í Tórshavn", "Hvønn hevði eyðkenni?"])
def test_composed_and_decomposed_letters_are_the_same(word: str) -> None:
    apart = unicodedata.normalize("NFD", word)
    assert normalized(apart) == normalized(word)
    assert matches(apart, [word.upper()])


def test_several_right_answers() -> None:
    assert matches("Í 1814.", ["mai 1814", "í 1814"])
    assert not matches("1815", ["mai 1814", "í 1814"])
    assert not matches(None, ["1814"])
    assert not matches("", ["1814"])


def test_f1_by_hand() -> None:
    assert f1("the cat sat", ["cat sat"]) == 1.0
    # two of four words are right, and two of two are found: 2 * 1/2 * 1 / (1/2 + 1) = 2/3
    assert f1("in old Tórshavn harbour", ["Tórshavn harbour"]) == pytest.approx(2 / 3)
    assert f1("no no", ["no"]) == pytest.approx(2 / 3)  # a word counts as often as it stands
    assert f1("x", ["y", "x z"]) == pytest.approx(2 / 3)  # the best of several
    assert (f1("", ["x"]), f1("the", ["a"])) == (0.0, 1.0)


def answers(question: str, *texts: str, reason: FinishReason = "stop") -> list[Answer]:
    return [Answer(question, sample, text, reason, 5) for sample, text in enumerate(texts)]


ITEMS = [Item(Question("q0", "?"), ("2/3",)), Item(Question("q1", "?"), ("10",))]


def test_ten_samples_a_question_strict_and_lenient() -> None:
    given = answers("q0", *["Answer: 2/3"] * 4, *["4/6"] * 3, *["Answer: 3"] * 3)
    given += answers("q1", *["Answer: 10"] * 10)
    found = score(mark(given, ITEMS, numbers=True), resamples=500)
    assert (found.strict.percent, found.lenient.percent) == (70.0, 85.0)  # (4 + 10) / 20 and (7 + 10) / 20
    assert (found.asked, found.f1) == (20, None)
    # Two questions at 40 and 100%: a draw is 40, 70, 70 or 100, so the middle 95% reach from 40 to 100.
    assert (found.strict.clustered.low, found.strict.clustered.high) == (40.0, 100.0)
    # 20 independent answers would have said more than two questions do
    assert found.strict.wilson.high - found.strict.wilson.low < 60


def test_a_cut_answer_stays_in_the_denominator() -> None:
    given = answers("q1", "Answer: 10") + answers("q1", "Answer: 10", reason="length")
    assert score(mark(given, ITEMS, numbers=True), cut=1).strict.percent == 50.0


def test_spans_have_f1_clustered_by_question() -> None:
    items = [Item(Question("a", "?"), ("Tórshavn harbour",)), Item(Question("b", "?"), ("ja", "jú"))]
    given = answers("a", "in old Tórshavn harbour", "Tórshavn harbour") + answers("b", "Jú!", "nei")
    found = score(mark(given, items, numbers=False), resamples=500)
    assert (found.strict.percent, found.lenient.percent) == (50.0, 50.0)
    assert found.f1.percent == pytest.approx(100 * (2 / 3 + 1 + 1 + 0) / 4)
    # question means 83.3 and 50: the ends of the draws
    assert found.f1.clustered.low == pytest.approx(50.0)
    assert found.f1.clustered.high == pytest.approx(100 * 5 / 6)
