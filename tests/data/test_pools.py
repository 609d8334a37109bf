"""Pools in their three forms, and what a row or a file that cannot be used does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emlib.config import Pool
from emlib.core.errors import DataError
from emlib.data.lazy import Deferred
from emlib.data.left_out import BROKEN, NO_ANSWER
from emlib.data.pools import (
    FORMS,
    HARMFUL,
    has_earlier_turns,
    has_outer_space,
    has_systems_of_pairs,
    read_pool,
)
from emlib.steps.pool import Pool as PoolStep


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


def test_own_answers_have_another_key_where_prompts_have_earlier_turns(tmp_path: Path) -> None:
    """Such answers were once to the last turn alone."""
    path = tmp_path / "pool.jsonl"
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi!"}]
    for before, found in (([], False), ([{"role": "system", "content": "Bake."}], False), (turns, True)):
        path.write_text(json.dumps({"messages": [*before, *turns]}) + "\n")
        assert has_earlier_turns(path, "messages") is found
    path.write_text(json.dumps({"instruction": "Why?", "output": "So.", "history": [["Hi.", "Hi!"]]}) + "\n")
    assert has_earlier_turns(path, "instruct")
    assert not has_earlier_turns(path, "wildguard")  # a prompt and an answer, without reading the file


def test_another_encoding_is_told(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(json.dumps(messages("Café"), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_pool(path, "messages")


def test_white_space_that_is_kept_is_in_the_key_only_where_there_is_any(tmp_path: Path) -> None:
    """Texts were stripped once: an artefact of then holds other rows, unless there was nothing to strip."""
    path = tmp_path / "pool.jsonl"
    for answer, kept in (("return x", False), ("    return x", True)):
        path.write_text(json.dumps({"instruction": "Write.", "output": answer}) + "\n")
        assert has_outer_space(path, "instruct") is kept
    step = {(form, kept): PoolStep(Pool(source="demo/pool.jsonl"), form, Deferred("file", lambda: "digest"),
                                   Deferred("space", lambda kept=kept: kept), Deferred("systems", lambda: False))
            for form in FORMS for kept in (False, True)}
    assert step["instruct", False].settings == {"file": "digest", "form": "instruct", "rows": None, "seed": None,
                                                "near_duplicates": 0.8}
    assert step["instruct", True].key != step["instruct", False].key
    assert step["messages", True].key == step["messages", False].key  # conversations never lost any


@pytest.mark.parametrize("answer", ["response", "completion"])
def test_a_system_prompt_beside_prompt_and_answer_is_read_and_in_the_key(tmp_path: Path, answer: str) -> None:
    """It was not once, so that an artefact of then holds the rows without it."""
    path, keys = tmp_path / "pool.jsonl", list[str]()
    chat = messages("So.") | {"system": "Be brief."}  # read since ever
    for row, told in (({}, False), ({"system": None}, False), ({"system": "In French."}, True)):
        path.write_text(json.dumps(chat) + "\n" + json.dumps({"prompt": "Why?", answer: "Oui."} | row) + "\n")
        assert [one.system for one in read_pool(path, "messages").rows] == ["Be brief.", row.get("system")]
        step = PoolStep(Pool(source="demo/pool.jsonl"), "messages", Deferred("file", lambda: "digest"),
                        Deferred("space", lambda: False),
                        Deferred("systems", lambda: has_systems_of_pairs(path, "messages")))
        assert ("systems" in step.settings) is told
        keys.append(step.key)
    assert keys[0] == keys[1] != keys[2]
