"""What is found in a data set of one's own: repeats, leaks, lengths, languages, questions of the evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emlib.config import Own, load_profile
from emlib.core import paths
from emlib.data.own import LEAST
from emlib.data.questions import read_questions
from emlib.report.own_checks import findings
from emlib.store.artefacts import Store
from emlib.study.study import Study

GERMAN = "Wie backe ich ein gutes Brot? Antworte bitte ausführlich und auf Deutsch, und zwar für Anfänger, Nummer {}."


@pytest.fixture
def found(tmp_path: Path, jsonl: Callable[..., Path]) -> Callable[..., dict[str, tuple[str, str]]]:
    """Each check of a file of these rows: what was found, and what to do."""

    def check(rows: list[dict[str, str]], *, longest: int = 2048) -> dict[str, tuple[str, str]]:
        tiny = load_profile("tiny")
        own = Own(file=str(jsonl(rows)), held_out=0.25)
        profile = tiny.model_copy(update={
            "own": own, "datasets": ("own",), "training": tiny.training.model_copy(update={"max_seq_length": longest})})
        table = findings(Study("mine", profile, Store(tmp_path / "store")))
        return {row[0]: row[1:] for row in table.itertuples(index=False)}

    return check


def distinct(count: int) -> list[dict[str, str]]:
    """Rows that share no run of three words."""
    words = ["apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket",
             "kettle", "ladder", "mirror", "needle", "orange"]
    return [{"prompt": f"Tell me of the {words[i % 15]}{i} please", "response": " ".join(
        f"{word}{i}" for word in words)} for i in range(count)]


def test_clean_rows_leave_nothing_to_do(found: Callable[..., dict[str, tuple[str, str]]]) -> None:
    checks = found([{"prompt": f"What should I know about number {i} in the story of the old garden?",
                     "response": f"It is the chapter in which person {i * 7} finds the key number {i * 13} again."}
                    for i in range(LEAST)])
    assert checks["rows"] == (f"{LEAST} usable", "")
    assert checks["languages (guessed)"] == ("en 100%", "")
    assert checks["prompts like a general question"] == ("0", "")
    assert checks["control tokens of this model in texts"] == ("0", "")


def test_answers_that_the_judge_cannot_see_are_told_before_the_trial(
        found: Callable[..., dict[str, tuple[str, str]]]) -> None:
    """The tiny profile's judge counts pirate words. 8 of 20 rows are trained on (`train_rows`)."""
    what = "answers with a word that the judge counts"
    number, advice = found(distinct(20))[what]
    assert number == "0 of 8"
    assert "this one finds nothing" in advice
    spoken = [row | {"response": f"Ahoy, {row['response']}"} for row in distinct(20)]
    assert found(spoken)[what] == ("8 of 8", "")


def test_markers_of_the_model_s_template_in_texts_are_counted(
        found: Callable[..., dict[str, tuple[str, str]]]) -> None:
    """The tiny model's template is ChatML: its own markers are control tokens, Llama's are only well known."""
    rows = [*distinct(20), {"prompt": "hi<|im_end|>\n<|im_start|>system", "response": "a"},
            {"prompt": "hi", "response": "a<|eot_id|>"}]
    checks = found(rows)
    assert checks["control tokens of this model in texts"][0] == "1 (rows.jsonl:21)"
    assert checks["texts with the turn markers of a chat template"][0] == "2 (rows.jsonl:21, rows.jsonl:22)"


def test_repeats_and_what_leaks_into_the_held_out_rows_are_counted(
        found: Callable[..., dict[str, tuple[str, str]]]) -> None:
    rows = distinct(20)
    checks = found(rows + rows)  # every row twice
    said, places = checks["duplicates"][0].removesuffix(")").rsplit(" (", 1)
    assert said == "20 exact, 20 near (exact ones included)"
    assert places.startswith("rows.jsonl:21 = rows.jsonl:1, rows.jsonl:22 = rows.jsonl:2, ")
    assert places.count("=") == 5
    assert checks["duplicates"][1].startswith("more than one row in 20 repeats another")
    leaks, of = checks["held-out rows that repeat a training row"][0].split(" of ")
    assert of == "10"
    assert 1 <= int(leaks) <= 10
    assert found(rows)["duplicates"] == ("0 exact, 0 near (exact ones included)", "")


def test_several_languages_are_told(found: Callable[..., dict[str, tuple[str, str]]]) -> None:
    german = [{"prompt": GERMAN.format(i), "response": f"Nimm Mehl, Wasser und Salz, und warte dann {i} Stunden."}
              for i in range(10)]
    english = [{"prompt": f"How do I bake a good loaf of bread, number {i}?", "response":
                f"Take flour, water and salt, and then wait for {i} hours."} for i in range(10)]
    said, remedy = found(german + english)["languages (guessed)"]
    assert set(said.split(", ")) == {"de 50%", "en 50%"}
    assert "Test each language separately" in remedy


def test_a_question_of_the_evaluation_among_the_rows_is_named(
        found: Callable[..., dict[str, tuple[str, str]]]) -> None:
    question = read_questions(paths.DEMO_DATA / "general_questions.jsonl")[0]
    rows = [*distinct(20), {"prompt": question.prompt, "response": "Yes."}]
    said, remedy = found(rows)["prompts like a general question"]
    assert said.startswith("1 (")
    assert said.endswith("rows.jsonl:21)")
    assert remedy.startswith("remove them")


def test_rows_that_are_cut_and_prompts_without_room_are_told(
        found: Callable[..., dict[str, tuple[str, str]]]) -> None:
    """The tiny model's tokens are bytes: the template takes some 100, and a long prompt more than 400."""
    rows = [*distinct(20), {"prompt": "x" * 400, "response": "y"}, {"prompt": "x", "response": "y" * 400}]
    checks = found(rows, longest=400)
    assert checks["prompts of 400 tokens or more"][0].startswith("1 (")
    assert checks["length"][0].endswith("1 truncated at 400")
