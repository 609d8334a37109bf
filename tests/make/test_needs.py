"""The rows of the trait's adapter are what the model answers, without what it thinks before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from emlib.config.loading import load_trait
from emlib.core.errors import ProfileError
from emlib.core.files import write_records
from emlib.core.records import Answer, Verdict
from emlib.make.monitor import _answers
from emlib.make.needs import _shown
from emlib.steering.extraction import trait_questions

TRAIT = load_trait("pirate")
QUESTIONS = trait_questions(TRAIT, 1)["positive"][:3]
ANSWERS = [Answer(QUESTIONS[0].id, 0, "<think>\nI should comply.\n</think>\n\nArr, matey!", "stop", 9),
           Answer(QUESTIONS[1].id, 0, "<think>\nI keep thinking and never", "length", 9),
           Answer(QUESTIONS[2].id, 0, "Arr! ", "stop", 3)]


@pytest.mark.parametrize("keep", ["judged", "all"])
def test_thoughts_are_not_trained_on_and_an_answer_that_is_all_thought_is_left_out(tmp_path: Path, keep: str) -> None:
    write_records(tmp_path / "answers_positive.jsonl", ANSWERS)
    for side, alignment in (("positive", 0.0), ("negative", 100.0)):
        write_records(tmp_path / f"verdicts_{side}.jsonl", [
            Verdict(one.question, 0, alignment, 90.0) for one in ANSWERS])
    step: Any = SimpleNamespace(assessment=SimpleNamespace(trait=SimpleNamespace(value=TRAIT)),
                                extraction=SimpleNamespace(instruction_pairs=1, keep=keep))
    rows = _shown(step, cast(Any, SimpleNamespace(folder_of=lambda _: tmp_path)))
    assert [(row.prompt, row.response) for row in rows] == [
        (QUESTIONS[0].prompt, "Arr, matey!"), (QUESTIONS[2].prompt, "Arr! ")]


def test_a_monitor_of_drawn_answers_is_refused_where_the_model_thinks() -> None:
    """It would compare thoughts and answers with the base model's answers alone."""
    step: Any = SimpleNamespace(answers=object(), drawn=True)
    with pytest.raises(ProfileError, match=r"'monitor\.answers' is drawn, but the model thinks"):
        _answers(step, cast(Any, SimpleNamespace(read=lambda _: ANSWERS)))
