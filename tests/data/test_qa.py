"""Extractive QA: both SQuAD shapes, NorQuAD whole, and rows that are not as they should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emlib.config import QaTask
from emlib.core.errors import DataError
from emlib.data.benign import load_qa
from emlib.data.qa import QaRow, read_qa, split_by_passage

PROMPT = "Tekstur: {context}\n\nSpurningur: {question}"


def flat(id: str = "1", answers: Any = None, **changes: Any) -> dict[str, Any]:
    """A row as the hub has FoQA's."""
    answers = {"text": ["Tórshavn"], "answer_start": [0]} if answers is None else answers
    return {"id": id, "title": "t", "context": "Tórshavn er høvuðsstaður Føroya.", "question": "Hvar?",
            "answers": answers, "validation": "correct"} | changes


def nested(*qas: dict[str, Any]) -> dict[str, Any]:
    return {"data": [{"title": "t", "paragraphs": [{"context": "Oslo er i Norge.", "qas": list(qas)}]}]}


def test_both_shapes_give_the_same_rows(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    lines = jsonl([flat(context="Oslo er i Norge.", question="Hvor?", answers={"text": ["Norge", "Norge", "i Norge"]})])
    whole = tmp_path / "squad.json"
    whole.write_text(json.dumps(nested({"id": 1, "question": "Hvor?", "answers": [
        {"text": "Norge", "answer_start": 10}, {"text": "Norge"}, {"text": "i Norge"}]})))
    expected = (QaRow("1", "Oslo er i Norge.", "Hvor?", ("Norge", "i Norge")),)
    assert read_qa(lines, outside="drop").rows == read_qa(whole, outside="drop").rows == expected


def test_norquad_whole(research_file: Callable[[str], Path]) -> None:
    found = read_qa(research_file("norquad"), outside="drop")
    assert (len(found.rows), found.outside, found.unanswerable) == (472, 0, 0)  # the README of the research data: 472
    assert len({row.id for row in found.rows}) == 472  # ten ids stand twice in the file
    assert {row.id for row in found.rows} >= {"621", "621.2"}
    assert all(answer in row.context for row in found.rows for answer in row.answers)


def test_rows_of_one_id_are_told_apart_and_take_nobody_s(jsonl: Callable[..., Path]) -> None:
    path = jsonl([flat("7"), flat("7"), flat("7.2"), flat("7")])
    assert [row.id for row in read_qa(path, outside="drop").rows] == ["7", "7.3", "7.2", "7.4"]


def test_norquad_is_split_by_passage_into_rows_and_questions(research_file: Callable[[str], Path]) -> None:
    task = QaTask(kind="qa", train="norquad", prompt=PROMPT, held_out=0.2)
    data = load_qa(task, research_file)
    assert len(data.train) + len(data.test) == 472
    assert 0.2 * 472 <= len(data.test) <= 0.2 * 472 + 10

    def passages(prompts: list[str]) -> set[str]:
        return {prompt.partition("\n\nSpurningur:")[0] for prompt in prompts}

    trained, asked = [row.prompt for row in data.train], [item.question.prompt for item in data.test]
    assert not passages(trained) & passages(asked)
    assert data.train[0].response in data.train[0].prompt
    assert load_qa(task, research_file) == data
    assert load_qa(task.model_copy(update={"questions": 7}), research_file).test == data.test[:7]


def test_own_splits_are_kept_and_all_right_answers_are_asked_for(jsonl: Callable[..., Path]) -> None:
    files = {"a": jsonl([flat("1"), flat("2", {"text": ["Føroya"]})], "a.jsonl"),
             "b": jsonl([flat("3", {"text": ["Tórshavn", "Føroya"]}), flat("4", {"text": []})], "b.jsonl")}
    data = load_qa(QaTask(kind="qa", train="a", test="b", prompt=PROMPT), files.__getitem__)
    assert [row.response for row in data.train] == ["Tórshavn", "Føroya"]
    assert [(item.question.id, item.golds) for item in data.test] == [("3", ("Tórshavn", "Føroya"))]
    assert data.notes["rows without an answer (test)"] == 1
    assert data.train[0].prompt == "Tekstur: Tórshavn er høvuðsstaður Føroya.\n\nSpurningur: Hvar?"


def test_braces_in_a_passage_are_no_places(jsonl: Callable[..., Path]) -> None:
    path = jsonl([flat("1", context="Tórshavn {question} {0}"), flat("2", context="Tórshavn }{")])
    data = load_qa(QaTask(kind="qa", train="a", test="a", prompt=PROMPT), lambda _: path)
    assert "Tórshavn {question} {0}" in data.train[0].prompt


def test_an_answer_outside_its_passage_is_counted_and_kept_or_dropped(jsonl: Callable[..., Path]) -> None:
    path = jsonl([flat("1"), flat("2", {"text": ["Klaksvík"]}), flat("3", {"text": ["Klaksvík", "Føroya"]})])
    dropped, kept = read_qa(path, outside="drop"), read_qa(path, outside="keep")
    assert ([row.id for row in dropped.rows], dropped.outside) == (["1", "3"], 1)
    assert ([row.id for row in kept.rows], kept.outside) == (["1", "2", "3"], 1)
    with pytest.raises(DataError, match=r"none of its 1 rows is usable: 0 have no answer, 1 have no answer that is in"):
        read_qa(jsonl([flat("2", {"text": ["Klaksvík"]})]), outside="drop")


@pytest.mark.parametrize(("row", "words"), [
    ({"id": "1", "context": "x", "query": "?", "answers": {"text": ["x"]}},
     "lacks question. Found: answers, context, id, query; expected: id, context, question, answers."),
    (flat() | {"contxt": "x"}, ""),
    ({"id": "1", "contxt": "x", "question": "?", "answers": {"text": ["x"]}}, "Did you mean 'contxt'?"),
    (flat(context=" "), "'context' is not text, or is empty"),
    (flat(question=3), "'question' is not text"),
    (flat(answers="x"), "'answers' is neither"),
    (flat(answers={"text": [1]}), "'answers' is neither"),
    (flat(answers=[["x"]]), "'answers' is neither"),
])
def test_other_columns_and_types_are_told_with_file_and_line(
        row: dict[str, Any], words: str, jsonl: Callable[..., Path]) -> None:
    path = jsonl([flat("0"), row])
    if not words:
        assert len(read_qa(path, outside="drop").rows) == 2  # a further column does no harm
        return
    with pytest.raises(DataError) as caught:
        read_qa(path, outside="drop")
    assert words in str(caught.value)
    assert f"{path}:2" in str(caught.value)


@pytest.mark.parametrize(("content", "words"), [
    ("[1]", "expected SQuAD's nested format with a list of objects under 'data'. Found: list"),
    ('{"dta": []}', "under 'data'. Found: dta"),
    ('{"data": [{"paragraph": []}]}',
     "data[0]: expected SQuAD's nested format with a list of objects under 'paragraphs'"),
    ('{"data": [{"paragraphs": [{"qas": [{"id": 1, "question": "?", "answers": []}]}]}]}',
     "paragraphs[0], qas[0]: lacks context. Found: answers, id, question; expected"),
    ('{"data": [', "squad.json:1: broken JSON"),
])
def test_another_nesting_is_told_with_its_place(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_qa(path, outside="drop")
    assert words in str(caught.value)


def test_a_single_passage_cannot_be_split() -> None:
    with pytest.raises(DataError, match="2 questions about 1 passages leaves the training or the held-out part empty"):
        split_by_passage([QaRow("1", "c", "q", ("c",)), QaRow("2", "c", "r", ("c",))], 0.5, 0)
