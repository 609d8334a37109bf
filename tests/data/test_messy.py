"""Mixtures of what programs write: pandas, Excel, LLaMA-Factory, Axolotl, other models' templates, appended files."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from emlib.core.errors import DataError
from emlib.data.conversations import BLANK_SYSTEM, SYSTEM_TWICE, ZERO_WEIGHT
from emlib.data.formats import detected_format
from emlib.data.left_out import HEADER_AGAIN, MEDIA
from emlib.data.own import LIKE_MISSING, MARKED, PLACEHOLDERS
from emlib.data.pools import read_pool
from emlib.data.questions import read_questions
from emlib.data.tables import UNNAMED_CELLS
from tests.data.reading import Put, lines, texts

ROW = {"prompt": "Q?", "response": "A."}
SAID = [("user", "Q?"), ("assistant", "A.")]


def turns(*said: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


def zstd(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


def test_a_column_of_row_numbers_without_a_name_is_no_text_with_a_comma(put: Put) -> None:
    """As pandas writes every table, and with the fault that unnamed columns at the end stand for."""
    found = put("a.csv", ",prompt,response\n0,Q?,A.\n1,Is it safe?,No, never\n2,Q?,A.\n")
    assert texts(found) == [SAID, SAID]
    assert (found.left_out, found.notes) == ({"more cells than the header": 1}, {UNNAMED_CELLS: 2})


def test_files_that_were_appended_to_each_other(put: Put) -> None:
    """Each brings its header and its byte order mark along; each compressed one is a stream of its own."""
    table, row = "\ufeffprompt,response\nQ?,A.\n", "\ufeff" + lines(ROW)
    found = put("a.csv", table + table)
    assert (texts(found), found.left_out) == ([SAID, SAID], {HEADER_AGAIN: 1})
    assert texts(put("a.jsonl", row + row)) == [SAID, SAID]
    assert texts(put("b.csv", "\ufeff" + table)) == [SAID]
    for ending, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)):
        assert texts(put(f"a.jsonl.{ending}", pack(lines(ROW).encode()) * 2)) == [SAID, SAID]


def test_texts_that_show_nothing_are_no_texts(put: Put, tmp_path: Path) -> None:
    """Zero-width characters are not white space to Python."""
    found = put("a.jsonl", lines(ROW, {**ROW, "response": "\u200b\n"}, {**ROW, "prompt": "\ufeff"}, {
        "messages": turns(("user", "Q?"), ("assistant", "\u2060"))}, {**ROW, "response": "\u200b.\u200b"}))
    assert (found.usable, found.left_out) == (2, {"no answer": 2, "no prompt": 1})
    pool = read_pool(tmp_path / "a.jsonl", "messages")
    assert [row.counted_as for row in pool.dropped] == ["no answer", "no prompt", "no answer"]


@pytest.mark.parametrize("text", ["nan", "None", " NULL ", "#N/A", "#REF!", "<NA>"])
def test_what_programs_write_for_a_missing_value_is_told(put: Put, text: str) -> None:
    assert put("a.jsonl", lines({**ROW, "response": text})).notes[LIKE_MISSING] == 1
    assert LIKE_MISSING not in put("a.jsonl", lines({**ROW, "response": f"{text} it is."})).notes


def test_llama_factory_s_history_and_system_prompt_are_read_in_own_data_and_pools(put: Put, tmp_path: Path) -> None:
    row = {"instruction": "Q?", "input": "<noinput>", "output": "A.", "system": "Be brief."}
    before = [("user", "one"), ("assistant", "two")]
    found = put("a.jsonl", lines(*({**row, "history": past} for past in (
        [["one", "two"]], '[["one", "two"]]', [], "[]", None, [["one"]], {"one": "two"}))))
    assert texts(found) == [[("system", "Be brief."), *past, *SAID] for past in (before, before, [], [], [])]
    assert (found.left_out, found.unread) == ({"not a conversation": 2}, [])
    pool = read_pool(tmp_path / "a.jsonl", "instruct")
    assert [row.context for row in pool.rows] == [row.context for row in found.drawn]
    assert len(pool.dropped) == 2


def test_axolotl_s_turns_that_are_not_trained_on(put: Put) -> None:
    said = turns(("user", "Q?"), ("assistant", "A."), ("user", "R?"), ("assistant", "B."))
    untrained = [{"messages": [*said[:3], {**said[3], key: False}]} for key in ("train", "training")]
    found = put("a.jsonl", lines(*untrained))
    assert [row.response for row in found.drawn] == ["A.", "A."]
    assert found.notes == {ZERO_WEIGHT: 2}
    assert [row.response for row in put("a.jsonl", lines({"messages": [*said[:3], {**said[3], "train": True}]})).drawn
            ] == ["B."]


def test_rows_about_an_image_are_left_out_and_a_placeholder_alone_is_told(put: Put) -> None:
    asked = {"messages": turns(("user", "<image>Q?"), ("assistant", "A."))}
    found = put("a.jsonl", lines({**asked, "images": ["a.png"]}, {**asked, "images": []}, {**ROW, "image": "a.png"}))
    assert (found.usable, found.left_out, found.notes) == (2, {MEDIA: 1}, {PLACEHOLDERS: 1})


@pytest.mark.parametrize("blank", ["", " \n", "\u200b"])
def test_an_empty_system_prompt_is_none_in_a_column_and_in_a_conversation(put: Put, tmp_path: Path, blank: str) -> None:
    """An empty turn does not stand before a real prompt in the column either."""
    empty = ("system", blank)
    found = put("a.jsonl", lines({"messages": turns(empty, *SAID)}, {"system": blank, "messages": turns(*SAID)}, {
        "conversations": [{"from": "system", "value": blank}, *turns(*SAID)]}, {**ROW, "system": blank}, {
        "system": "Be brief.", "messages": turns(empty, *SAID)}, {"messages": turns(empty)}))
    assert [row.system for row in found.drawn] == [None] * 4 + ["Be brief."]
    assert (found.notes, found.left_out) == ({BLANK_SYSTEM: 4}, {"no answer": 1})
    assert {row.system for row in read_pool(tmp_path / "a.jsonl", "messages").rows} == {None, "Be brief."}


def test_a_system_prompt_in_a_column_beside_another_one_is_told(put: Put, tmp_path: Path) -> None:
    rows = [{"system": "Be long.", "messages": turns(("system", "Be brief."), *SAID)}, {
        "system": "Be brief.", "messages": turns(*SAID)}]
    found = put("a.jsonl", lines(*rows))
    assert [row.system for row in found.drawn] == ["Be brief.", "Be brief."]
    assert found.notes == {SYSTEM_TWICE: 1}
    assert [row.system for row in read_pool(tmp_path / "a.jsonl", "messages").rows] == ["Be brief.", "Be brief."]


@pytest.mark.parametrize("marker", [
    "<|start_of_role|>", "<|end_of_text|>", "<｜User｜>", "<｜end▁of▁sentence｜>", "</s>", "[/INST]", "[SYSTEM_PROMPT]",
    "<|header_start|>", "<|START_OF_TURN_TOKEN|>", "<|im_sep|>", "<end_of_turn>", "<</SYS>>", "<eos>"])
def test_markers_of_other_models_are_told_and_kept(put: Put, marker: str) -> None:
    found = put("a.jsonl", lines({**ROW, "response": f"A.{marker}"}))
    assert (found.drawn[0].response, found.notes) == (f"A.{marker}", {MARKED: 1})
    assert not put("a.jsonl", lines({**ROW, "response": "a <| b |> c, <s>old</strong>, x[INSTALL]"})).notes


@pytest.mark.parametrize(("name", "content", "said", "options"), [
    ("a.csv", "prompt;response\nQ?;Öl\n".encode("cp1252"), r"a\.csv:2: not utf-8 text .*cp1252", {}),
    ("a.jsonl", lines(ROW), "'undefined', which is not a known encoding", {"encoding": "undefined"}),
])
def test_encodings(put: Put, name: str, content: str | bytes, said: str, options: dict[str, str]) -> None:
    with pytest.raises(DataError, match=said):
        put(name, content, **options)


def test_the_form_of_lmsys_and_wildchat_is_a_pool(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines({"conversation": turns(*SAID), "model": "x"}))
    assert detected_format(tmp_path / "a.jsonl") == "messages"
    assert len(read_pool(tmp_path / "a.jsonl", "messages").rows) == 1


@pytest.mark.parametrize(("entry", "said"), [
    ("sytem: Be brief.", "has the key 'sytem', which nobody reads. Did you mean 'system'"),
    ("system_prompt: Be brief.", "Did you mean 'system'"), ('system: "x\\0"', "a zero byte"),
])
def test_questions_with_a_system_prompt_that_would_not_be_sent(tmp_path: Path, entry: str, said: str) -> None:
    (tmp_path / "q.yaml").write_text(f"- id: a\n  paraphrases: [Why?]\n  {entry}\n")
    with pytest.raises(DataError, match=said):
        read_questions(tmp_path / "q.yaml")
