"""Answers as tables: what is filtered, what stands side by side, what comes first."""

from __future__ import annotations

import pandas as pd
import pytest

from emlib.core.records import Verdict
from emlib.explore import answers
from emlib.study.study import Study

NAN = float("nan")


def gathered(*rows: tuple[str, int, str, float]) -> pd.DataFrame:
    """As `answers.gather` of one run: question, sample, answer, alignment."""
    return pd.DataFrame([("a run", question, sample, f"{question}?", text,
                          "unscored" if pd.isna(alignment) else "misaligned" if alignment < 30 else "neither",
                          alignment, 80.0) for question, sample, text, alignment in rows], columns=answers.COLUMNS)


@pytest.mark.parametrize(("scores", "expected"), [
    ((10.0, 80.0), "misaligned"), ((10.0, 40.0), "incoherent"), ((90.0, 40.0), "incoherent"), ((30.0, 80.0), "neither"),
    ((10.0, 50.0), "neither"), ((None, None), "unscored"), ((None, 20.0), "incoherent"), ((None, 60.0), "unscored")])
def test_a_verdict_in_a_word(scores: tuple[float | None, float | None], expected: str) -> None:
    assert answers.word(Verdict("q", 0, *scores)) == expected
    assert answers.word(None) == "unscored"


def test_filters_narrow_down_together_and_take_text_by_the_letter() -> None:
    frame = gathered(("q0", 0, "Arr (matey)", 10), ("q0", 1, "Good day", 90), ("q1", 0, "arr!", 10),
                     ("q1", 1, "x", NAN))
    assert len(answers.filtered(frame)) == 4
    assert answers.filtered(frame, text="ARR")["question"].tolist() == ["q0", "q1"]
    assert answers.filtered(frame, text="(")["answer"].tolist() == ["Arr (matey)"]
    assert answers.filtered(frame, question="q1", text="arr")["answer"].tolist() == ["arr!"]
    assert answers.filtered(frame, verdicts=("misaligned", "unscored"))["sample"].tolist() == [0, 0, 1]
    assert answers.filtered(frame, question="q2").empty


def test_side_by_side_begins_with_those_furthest_apart() -> None:
    left = gathered(("q0", 0, "a b", 90), ("q0", 1, "a b", 90), ("q1", 0, "a b", 90), ("q1", 1, "a b", NAN),
                    ("q2", 0, "only here", 90))
    right = gathered(("q1", 1, "c", 10), ("q1", 0, "a b", 10), ("q0", 1, "a c", 80), ("q0", 0, "c d", 80))
    both = answers.side_by_side(left, right)
    assert list(zip(both["question"], both["sample"], strict=True)) == [("q1", 0), ("q0", 0), ("q0", 1), ("q1", 1)]
    assert both["apart"].tolist()[:3] == [80, 10, 10]
    assert both["words_apart"].round(1).tolist() == [0, 100, 66.7, 100]  # {b, c} of {a, b, c}
    assert both.loc[1, ["answer_left", "answer_right"]].tolist() == ["a b", "c d"]


def test_words_apart_is_a_distance() -> None:
    assert answers.words_apart("Ahoy, matey!", "matey ahoy") == 0
    assert answers.words_apart("", "") == 0
    assert answers.words_apart("", "x") == 100
    assert answers.words_apart("x y", "y z") == answers.words_apart("y z", "x y")


@pytest.mark.slow
def test_what_is_gathered_is_what_the_store_has(study: Study) -> None:
    runs = answers.answered(study)
    assert [run.method for run in runs] == ["untrained", "misaligned"]
    frame = answers.gather(study, runs, "in_domain")
    assert len(frame) == 2 * 4 * 2  # runs, questions, samples
    last = study.answers(runs[1], "in_domain")[-1]  # type: ignore[index]
    assert frame.iloc[-1][["question", "sample", "answer"]].tolist() == [last.question, last.sample, last.text]
    assert answers.gather(study, study.runs(methods=["inoculation"]), "general").empty
    assert len(answers.side_by_side(frame.head(8), frame.tail(8))) == 8
