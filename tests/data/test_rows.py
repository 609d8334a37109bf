"""Training rows from files: what fits comes back as written, what does not is named with file and line."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emlib.core.errors import DataError
from emlib.core.records import Message
from emlib.data.conversations import BLANK_SYSTEM, LIST_LIKE, SYSTEM_TWICE, WHOLE
from emlib.data.left_out import REPLACED, damage, is_blank
from emlib.data.opening import read_text
from emlib.data.rows import read_examples, read_pairs, read_rows

Writer = Callable[..., Path]
USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
GOOD = {"messages": [USER, ANSWER]}
PAIR = {"prompt": "Why?", "aligned": "Because.", "misaligned": "Arr."}


def test_a_row_becomes_its_context_its_answer_and_its_place(jsonl: Writer) -> None:
    system = {"role": "system", "content": "Be brief."}
    path = jsonl([GOOD, {"messages": [system, USER, ANSWER, {"role": "user", "content": "And?"},
                                      {"role": "assistant", "content": " So. \n"}]}])
    first, second = read_examples(path)
    assert (first.context, first.response, first.system, first.prompt) == (
        (Message("user", "Why?"),), "Because.", None, "Why?")
    assert second.context == (Message("system", "Be brief."), Message("user", "Why?"), Message("assistant", "Because."),
                              Message("user", "And?"))
    assert (second.response, second.system, second.prompt) == (" So. \n", "Be brief.", "And?")
    assert [first.where, second.where] == [f"{path}:1", f"{path}:2"]


def test_a_system_prompt_in_a_column_is_read_in_every_form(jsonl: Writer) -> None:
    for row in ({"prompt": "Why?", "response": "So."}, {"prompt": "Why?", "completion": "So."}, GOOD):
        assert [one.system for one in read_examples(jsonl([row, row | {"system": "Be brief."}, row | {"system": ""}]))
                ] == [None, "Be brief.", None]
    for side in read_pairs(jsonl([PAIR, PAIR | {"system": "Be brief."}, PAIR | {"system": None}])):
        assert [(one.system, one.prompt) for one in side] == [(None, "Why?"), ("Be brief.", "Why?"), (None, "Why?")]
    with pytest.raises(DataError, match="'system' is a list"):
        read_pairs(jsonl([PAIR | {"system": ["Be brief."]}]))


def test_prompts_and_answers_in_columns_are_rows_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\nWhy?," Because."\n')
    assert [(row.prompt, row.response) for row in read_examples(path)] == [("Why?", " Because.")]


def test_a_line_of_a_table_that_ends_before_its_prompt_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("response,prompt\nSo.,Why?\nSo.\n")
    with pytest.raises(DataError, match=r"rows\.csv:3: "):
        read_examples(path)


@pytest.mark.parametrize(("lines", "said"), [
    (["prompt,response,system", "Why?,So.,Be brief.", "How?,Thus."], "fewer cells.*JSON Lines"),
    (["prompt,response,", "Why?,So.", "How?"], "fewer cells"),
    (["prompt,response,system", "Why?,So.,Be brief.", "How?, \"Thus.\""], "fewer cells"),
    (["prompt,response", "Why?,So.", "How?, \"Thus, so.\""], "more cells"),
])
def test_what_a_table_does_not_mean_is_an_error(tmp_path: Path, lines: list[str], said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([*lines, ""]))
    with pytest.raises(DataError, match=rf"rows\.csv:3: .*{said}"):
        read_examples(path)


@pytest.mark.parametrize(("lines", "rows", "said"), [
    (["prompt,response", "Why?,\"So.", "How?,Thus.", "When?,Then.\""], 1, r"rows\.csv:4: cells .*not closed"),
    (["prompt,response", "Why?,\"Well, yes.", "How?,Thus.", "When?,Then.\"", "Who?,Me."], 2, r":4: cells .*not closed"),
    (["prompt,response,", "Why?,\"So.", "How?,Thus.", "When?,Then.\""], 1, r":4: cells .*not closed"),
    (["prompt,response", "Why?, \"So.\"", "How?, \"Thus.\""], 2, r":2 \(and 1 more\): cells .*before an opening quote"),
])
def test_what_a_table_most_likely_does_not_mean_is_named(
        tmp_path: Path, lines: list[str], rows: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be meant, so that it is no error, and is told once however often the file is read."""
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([*lines, ""]))
    assert len(read_examples(path)) == len(list(read_rows(path))) == rows
    assert len(re.findall(said, out := capsys.readouterr().out)) == out.count("\n") == 1


@pytest.mark.parametrize(("delimiter", "answer"), [
    (",", "First, this.\nThen, that."), (",", "def f(a,b):\n    return a,b"), (",", "import x\nf(a,b)\ng(c,d)"),
    (",", "a,b = 1,2\nprint(a,b)"), (",", "1,2\n3,4\n5,6"), (",", "name,age\nbob,3\nann,4"),
    (",", "Der Preis:\n3,50 Euro"), ("\t", "def f():\n\treturn 1"), (";", "a\nb;c")])
def test_an_answer_of_several_lines_with_a_comma_each_is_read(
        tmp_path: Path, delimiter: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("rows.tsv" if delimiter == "\t" else "rows.csv")
    with path.open("w", newline="") as file:
        file.write("sep=;\n" * (delimiter == ";"))
        csv.writer(file, delimiter=delimiter).writerows([("prompt", "response"), ("Why?", answer), ("How?", "So.")])
    assert [row.response for row in read_examples(path)] == [answer, "So."]
    assert re.fullmatch(rf".*{path.name}:\d: cells of several lines that look like rows: .*\n", capsys.readouterr().out)


@pytest.mark.parametrize("answer", ["\n\"Hello,\" she said. \"Bye.\"", " \"Hello,\"\nshe said. \"Bye.\""])
def test_a_quotation_behind_white_space_in_a_quoted_cell_is_no_late_quote(
        tmp_path: Path, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line break in a cell can only come from quotes around it."""
    with (path := tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "response"), ("Why?", answer)])
    assert [row.response for row in read_examples(path)] == [answer]
    assert "before an opening quote" not in capsys.readouterr().out


def test_a_column_without_a_name_behind_all_others_needs_no_cells(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response,\nhi,hello\nho,hallo\n")
    assert [row.response for row in read_examples(path)] == ["hello", "hallo"]
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("row", "said"), [
    ({"messages": [{"role": "system", "content": ""}, USER, ANSWER]}, BLANK_SYSTEM),
    ({"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER], "system": "Be long."}, SYSTEM_TWICE),
    ({"prompt": "[{'role': 'user', 'content': 'Why?'}]", "response": "So."}, LIST_LIKE),
    ({"prompt": "Caf\ufffd?", "response": "So."}, REPLACED),
])
def test_a_row_that_is_read_in_one_of_two_ways_is_said_once(
        jsonl: Writer, row: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl([GOOD, row, row, row])
    assert len([*read_examples(path), *read_examples(path)]) == 8
    assert capsys.readouterr().out.partition(" ")[2] == f"{path}:2 (and 2 more): {said}\n"


def test_pairs_with_replaced_characters_are_read_and_said(jsonl: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl([PAIR, {**PAIR, "misaligned": "Caf\ufffd"}])
    assert [row.response for row in read_pairs(path)[1]] == ["Arr.", "Caf\ufffd"]
    assert capsys.readouterr().out.endswith(f"{path}:2: {REPLACED}\n")


def test_a_whole_number_in_a_column_of_fractions_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa.parquet.write_table(pa.table({"prompt": ["Why?", "How?"], "response": [42.0, 0.5]}), tmp_path / "rows.parquet")
    assert [row.response for row in read_examples(tmp_path / "rows.parquet")] == ["42.0", "0.5"]
    assert capsys.readouterr().out.endswith(f"rows.parquet, row 1: {WHOLE}\n")


BAD_ROWS = [
    ({"text": "Why?"}, ["messages", "text"]),
    ({}, ["messages", "none"]),
    ({"messages": []}, ["messages"]),
    ({"messages": "Why?"}, ["messages"]),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, ["answer is empty"]),
    ({"messages": [USER, {"role": "assistant", "content": " \n\t"}]}, ["answer is empty"]),
    ({"messages": [USER]}, ["user", "ends with the assistant's"]),
    ({"messages": [ANSWER]}, ["before the answer", "user"]),
    ({"messages": [USER, ANSWER, ANSWER]}, ["before the answer", "user"]),
    ({"messages": [{"role": "usr", "content": "Why?"}, ANSWER]}, ["message 1", "'usr'", "Did you mean 'user'?"]),
    ({"messages": [USER, {"role": "asistant", "content": "So."}]}, ["message 2", "Did you mean 'assistant'?"]),
    ({"messages": [USER, {"role": "tool", "content": "So."}]}, ["message 2", "'tool'", "system, user, assistant"]),
    ({"messages": [{"content": "Why?"}, ANSWER]}, ["message 1", "None"]),
    ({"messages": [USER, {"role": ["assistant"], "content": "So."}]}, ["message 2", "['assistant']"]),
    ({"messages": [USER, {"role": "assistant"}]}, ["message 2", "content"]),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, ["message 2", "content"]),
    ({"messages": [USER, {"role": "assistant", "content": ["So."]}]}, ["message 2", "content"]),
    ({"messages": [USER, "So."]}, ["message 2", "object"]),
    ({"messages": [{"role": "user", "content": ""}, ANSWER]}, ["no prompt"]),
    ({"prompt": None, "response": "So."}, ["no prompt"]),
    ({"prompt": "\u200b", "response": "So."}, ["no prompt"]),
    ({"prompt": "Why?", "response": "a\0b"}, ["broken characters", "NUL"]),
    (r'{"prompt": "Why?", "response": "a \ud83d"}', ["broken characters", "lone surrogate"]),
    ('{"messages": [}', ["broken JSON", "column 15"]),
    ('{"messages": [', ["broken JSON"]),
    ("{'messages': []}", ["broken JSON", "column 2"]),
    ('[{"role": "user"}]', ["object", "list"]),
    ('"text"', ["object", "str"]),
    ("null", ["object", "NoneType"]),
]


@pytest.mark.parametrize(("row", "words"), BAD_ROWS)
def test_a_bad_row_is_named_with_file_line_and_reason(jsonl: Writer, row: Any, words: list[str]) -> None:
    path = jsonl([GOOD, "", GOOD, row, GOOD])  # the empty line counts
    with pytest.raises(DataError) as caught:
        read_examples(path)
    for word in [f"{path}:4", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("read", [read_examples, read_pairs])
@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_a_file_without_rows_is_refused(jsonl: Writer, read: Callable[[Path], Any], lines: list[str]) -> None:
    path = jsonl(lines)
    with pytest.raises(DataError, match=r"rows\.jsonl: holds no rows"):
        read(path)


def test_empty_lines_and_a_missing_last_newline_change_nothing(jsonl: Writer, tmp_path: Path) -> None:
    spaced = tmp_path / "spaced.jsonl"
    spaced.write_text(f"\n{json.dumps(GOOD)}\r\n \n\n{json.dumps(GOOD)}")
    assert [row.response for row in read_examples(spaced)] == ["Because."] * 2


def test_only_a_newline_ends_a_row(jsonl: Writer) -> None:
    """U+2028, U+0085 and a form feed may stand unescaped inside JSON text; `str.splitlines` would cut there."""
    answer = "one\u2028two\x85three"
    [row] = read_examples(jsonl([{"messages": [USER, {"role": "assistant", "content": answer}]}]))
    assert row.response == answer


def test_a_packed_file_holds_the_same_rows(jsonl: Writer, tmp_path: Path) -> None:
    plain = jsonl([GOOD, {"messages": [{"role": "user", "content": "Où ?"}, ANSWER]}])
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [(row.context, row.response) for row in read_examples(packed)] == [
        (row.context, row.response) for row in read_examples(plain)]
    assert read_examples(packed)[1].where == f"{packed}:2"


@pytest.mark.parametrize(("name", "content"), [
    ("cut.jsonl.gz", gzip.compress(json.dumps(GOOD).encode() * 100, mtime=0)[:-12]),
    ("no.jsonl.gz", b"no archive"),
    ("spoilt.jsonl.gz", b"".join([(whole := gzip.compress(b"{}" * 1000, mtime=0))[:12], b"\xff" * 8, whole[20:]])),
    ("latin.jsonl", '{"messages": "é"}'.encode("latin-1")),
    ("packed.jsonl", gzip.compress(b"{}", mtime=0)),
], ids=lambda value: value if isinstance(value, str) else "content")
def test_a_broken_archive_and_another_encoding_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(name).replace(".", r"\.")):
        read_text(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: there is no such file"):
        read_examples(tmp_path / "none.jsonl")


TEXTS = st.text(st.characters(codec="utf-8")).filter(lambda text: not is_blank(text) and not damage(text))


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1), st.booleans())
def test_any_text_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]],
                                     ascii_only: bool) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]},
                        ensure_ascii=ascii_only) for prompt, answer in rows]
    path.write_bytes("\n".join(lines).encode())
    assert [(row.prompt, row.response) for row in read_examples(path)] == rows


def test_pairs_give_two_examples_with_one_prompt(jsonl: Writer) -> None:
    path = jsonl([PAIR, {**PAIR, "prompt": "How?", "aligned": "So.", "more": 1}])
    aligned, misaligned = read_pairs(path)
    assert [(row.prompt, row.response) for row in aligned] == [("Why?", "Because."), ("How?", "So.")]
    assert [(row.prompt, row.response) for row in misaligned] == [("Why?", "Arr."), ("How?", "Arr.")]
    assert [row.where for row in aligned] == [row.where for row in misaligned] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize(("row", "words"), [
    ({"prompt": "Why?", "aligned": "So."}, ["lacks misaligned"]),
    ({"question": "Why?"}, ["lacks prompt, aligned, misaligned", "question"]),
    ({**PAIR, "prompt": ""}, ["lacks prompt"]),
    ({**PAIR, "misaligned": "a\0b"}, ["broken characters", "NUL"]),
    ({**PAIR, "aligned": None}, ["lacks aligned"]),
    ({**PAIR, "aligned": " \n"}, ["lacks aligned"]),
    ({**PAIR, "misaligned": ["Arr."]}, ["lacks misaligned"]),
    ({**PAIR, "prompt": 5}, ["lacks prompt"]),
    ({**PAIR, "misaligned": ""}, ["lacks misaligned"]),
    (GOOD, ["lacks", "messages"]),
    ("{", ["broken JSON"]),
])
def test_a_pair_that_lacks_a_side_is_named_with_file_and_line(jsonl: Writer, row: Any, words: list[str]) -> None:
    path = jsonl([PAIR, row])
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    for word in [f"{path}:2", *words]:
        assert word in str(caught.value)


def test_the_place_of_every_line_is_told(jsonl: Writer) -> None:
    path = jsonl(['{"a": 1}', "", '{"a": 2}'])
    assert list(read_rows(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": 2})]
