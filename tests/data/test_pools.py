"""Pools in their three forms, and what a row or a file that cannot be used does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emlib.config import Pool, TinyModel
from emlib.core.errors import DataError
from emlib.data.lazy import Deferred
from emlib.data.left_out import BROKEN, NO_ANSWER
from emlib.data.pools import HARMFUL, read_pool
from emlib.data.tables import FEWER_CELLS, LATE_QUOTES
from emlib.steps.pool import Pool as PoolStep
from emlib.steps.specs import Model


def messages(answer: Any, role: str = "assistant") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Why?"}, {"role": role, "content": answer}]}


def wildguard(**changed: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "adversarial": False, "response": "Because.", "prompt_harm_label": "unharmful",
            "response_refusal_label": "compliance", "response_harm_label": "unharmful"} | changed


def test_rows_without_an_answer_are_left_out_by_name(jsonl: Callable[..., Path]) -> None:
    path = jsonl([messages("Because."), messages(" "), messages(None), messages("Why not?", "user"), messages("So.")])
    found = read_pool(path, "messages")
    assert [row.response for row in found.rows] == ["Because.", "So."]
    assert [(row.where, row.counted_as) for row in found.dropped] == [
        (f"{path}:{line}", NO_ANSWER) for line in (2, 3, 4)]


def test_what_the_reader_of_a_table_notes_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "pool.csv"
    path.write_text('prompt,response,system\nWhy?,So.\nHow?, "Thus.",Be brief.\nWhen?,Then.\n')
    assert read_pool(path, "messages").notes == {FEWER_CELLS: 2, LATE_QUOTES: 1}


def test_alpaca_s_form(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 and 2", "output": " 3 "},
            {"instruction": "Hi.", "input": "", "output": "Hi"},
            {"instruction": "Say nothing.", "input": "", "output": ""}]
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(rows))
    found = read_pool(path, "instruct")
    assert [(row.prompt, row.response, row.system) for row in found.rows] == [
        ("Add.\n\n1 and 2", " 3 ", None), ("Hi.", "Hi", None)]
    assert [row.where for row in found.dropped] == [f"{path}, row 3"]


def test_wildguard_s_benign_split_is_harmless_prompts_with_an_answer(jsonl: Callable[..., Path]) -> None:
    path = jsonl([wildguard(), wildguard(prompt_harm_label="harmful"), wildguard(response_harm_label="harmful"),
                  wildguard(response=None, response_harm_label=None), wildguard(response="I cannot.")])
    found = read_pool(path, "wildguard")
    assert [row.response for row in found.rows] == ["Because.", "I cannot."]  # refusals are the filter's matter
    assert [row.counted_as for row in found.dropped] == [HARMFUL, HARMFUL, NO_ANSWER]


def test_the_research_copy_of_alpaca(research_file: Callable[[str], Path]) -> None:
    found = read_pool(research_file("alpaca"), "instruct")
    assert len(found.rows) + len(found.dropped) == 5000
    assert Counter(row.counted_as for row in found.dropped) == {NO_ANSWER: 2}


def test_broken_characters_leave_a_row_out_and_another_language_does_not(jsonl: Callable[..., Path]) -> None:
    rows = [messages("Caf\ufffd"), messages("Fordi det er slik."), messages("因为如此。")]
    found = read_pool(jsonl(rows), "messages")
    assert [row.response for row in found.rows] == ["Fordi det er slik.", "因为如此。"]
    assert [row.counted_as for row in found.dropped] == [BROKEN]


@pytest.mark.parametrize(("content", "form", "words"), [
    ("[]", "instruct", ["has no usable row", "the file is empty"]),
    ('[{"instruction": "a", "output": ""}]', "instruct", ["has no usable row", NO_ANSWER]),
    ('[{"instruction": "a"', "instruct", ["broken JSON"]),
    ('{"instruction": "a"}', "instruct", ["expected a list"]),
    ('[{"prompt": "a", "response": "b"}]', "instruct", ["row 1: lacks instruction, output", "'format'"]),
    ('[{"prompt": "a", "response": "b"}]', "wildguard", ["lacks prompt_harm_label"]),
])
def test_a_file_that_is_no_pool_is_told(tmp_path: Path, content: str, form: Any, words: list[str]) -> None:
    path = tmp_path / "pool.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_pool(path, form)
    assert all(word in str(caught.value) for word in [*words, str(path)]), str(caught.value)


def test_another_encoding_is_told(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(json.dumps(messages("Café"), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_pool(path, "messages")


def test_the_key_has_what_determines_the_candidates_and_a_seed_only_where_it_draws(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def step(**values: Any) -> PoolStep:
        return PoolStep(Pool(source="demo/pool.jsonl", **values), "instruct", Deferred("file", lambda: "digest"))

    assert step().settings == {"version": 2, "file": "digest", "form": "instruct", "divided_for": None, "spec": {
        "rows": None, "least_words": 0, "near_duplicates": 0.8}}
    assert step(near_duplicates=None).settings["version"] == 1  # as before all near-duplicates were found
    assert step(seed=3).key == step(epsilon=0.2).key == step(chunk_tokens=9).key == step().key
    assert len({step(rows=4).key, step(rows=4, seed=3).key, step(least_words=2).key, step().key}) == 4
    text = replace(step(chunk_tokens=9), form="text", divided_for=Model(TinyModel(kind="tiny")))
    assert text.settings["spec"]["chunk_tokens"] == 9
    monkeypatch.setattr(PoolStep, "version", 3)
    assert [step(near_duplicates=share).settings["version"] for share in (None, 0.5)] == [1, 3]


@pytest.mark.parametrize("answer", ["response", "completion"])
def test_a_system_prompt_beside_prompt_and_answer_is_read(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "pool.jsonl"
    chat = messages("So.") | {"system": "Be brief."}
    for row in ({}, {"system": None}, {"system": "In French."}):
        path.write_text(json.dumps(chat) + "\n" + json.dumps({"prompt": "Why?", answer: "Oui."} | row) + "\n")
        assert [one.system for one in read_pool(path, "messages").rows] == ["Be brief.", row.get("system")]
