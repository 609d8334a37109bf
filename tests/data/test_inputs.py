"""What people bring, file by file: every kind is read as it is meant, or refused or left out in words."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emlib.config import Own, load_profile
from emlib.core.errors import DataError, ProfileError
from emlib.data.conversations import EARLIER_ANSWERS, JOINED_PARTS, WHOLE, ZERO_WEIGHT
from emlib.data.own import ENDS, every_row, read_own
from emlib.data.pools import read_pool
from emlib.data.questions import read_questions
from emlib.data.rows import read_examples
from emlib.data.tables import EMPTY_CELLS, FEWER_CELLS, ROWS_IN_CELL
from tests.data.reading import Put, lines, texts

ROWS = [{"prompt": "How long do eggs boil?", "response": "Seven minutes."}, {"prompt": "Und Öl?", "response": "Heiß."}]
TABLE = "prompt,response\nHow long do eggs boil?,Seven minutes.\nUnd Öl?,Heiß.\n"
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def zstd(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


def parquet(**columns: Any) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), out)
    return out.getvalue().to_pybytes()


@pytest.mark.parametrize(("name", "content"), [
    ("a.csv", TABLE), ("A.CSV", TABLE), ("a.tsv", TABLE.replace(",", "\t")), ("a.csv", "\ufeff" + TABLE),
    ("a.csv", TABLE.replace("\n", "\r\n")), ("a.csv", TABLE.replace("\n", "\r")), ("a.csv", TABLE.encode("utf-16")),
    ("a.csv", "sep=;\n" + TABLE.replace(",", ";")), ("a.csv", '\ufeff"sep=\t"\r\n' + TABLE.replace(",", "\t")),
    ("a.tsv.gz", gzip.compress(TABLE.replace(",", "\t").encode(), mtime=0)),
    ("a.csv.xz", lzma.compress(TABLE.encode())),
    ("a.jsonl", LINES), ("a.JSONL", LINES), ("a.ndjson", "\n \n" + LINES), ("a.jsonl", LINES.encode("utf-16")),
    ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)), ("a.jsonl.zst", zstd(LINES.encode())), ("a.json", LINES),
    ("a.json", json.dumps(ROWS)), ("a.json", "\ufeff" + json.dumps(ROWS, indent=1)), ("a.jsonl", json.dumps(ROWS)),
    ("a.json", json.dumps({"version": 1, "data": ROWS})), ("a.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
    ("a.parquet", parquet(prompt=[row["prompt"] for row in ROWS], response=[row["response"] for row in ROWS],
                          made=[date(2026, 1, 2)] * 2, picture=[b"\xff"] * 2)),
])
def test_every_kind_of_file_gives_the_same_rows(put: Put, name: str, content: str | bytes) -> None:
    found = put(name, content)
    assert texts(found) == [[("user", row["prompt"]), ("assistant", row["response"])] for row in ROWS]
    assert (found.rows, found.left_out) == (2, {})


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.xlsx", b"PK\x03\x04", r"a\.xlsx: files of this kind \(\.xlsx\) are not read. Read are: JSON Lines"),
    ("a.txt", "Hello", r"\(\.txt\) are not read"),
    ("a.csv", b"PK\x03\x04", r"a\.csv: an Excel workbook"),
    ("a.jsonl", "version https://git-lfs.github.com/spec/v1\n", r"a pointer of Git LFS .* Read are: JSON Lines"),
    ("a.parquet", "version https://git-lfs.github.com/spec/v1\n", r"a pointer of Git LFS"),
    ("a.jsonl", gzip.compress(b"{}", mtime=0), r"compressed by gzip. Let its name end in \.gz"),
    ("a.jsonl.gz", gzip.compress(LINES.encode() * 99, mtime=0)[:-9], r"a\.jsonl\.gz: a broken archive"),
    ("a.jsonl.zst", zstd(LINES.encode() * 99)[:-9], r"a\.jsonl\.zst: a broken archive"),
    ("a.parquet", b"PAR1", r"a\.parquet: not readable as Parquet"),
    ("a.csv", TABLE.encode("utf-16-le"), r"full of zero bytes\). It may be utf-16-le: then set own\.encoding"),
    ("a.csv", "prompt,response\na,b\nÄ,ö\n".encode("latin-1"), r"a\.csv:3: not utf-8 text \(byte 0xc4\).*cp1252"),
    ("a.csv", "", "holds no rows"), ("a.csv", "prompt,response\n", "holds no rows"), ("a.json", "[]", "holds no rows"),
    ("a.csv", "prompt,response,response\na,b,c\n", r"a\.csv:1: the column 'response' is there twice"),
    ("a.csv", "prompt, prompt,response\na,b,c\n", r"a\.csv:1: the column 'prompt' is there twice"),
    ("a.jsonl", LINES + '{"prompt":"a","response":"x","response":"y"}', r"a\.jsonl:3: the key 'response'.* twice"),
    ("a.jsonl", '{"messages":[{"role":"user","content":"a","content":"b"}]}', r":1: the key 'content'.* twice"),
    ("a.json", '[{"prompt":"a","prompt":"b"}]', r"a\.json: the key 'prompt', as in .*, is there twice"),
    ("a.jsonl", LINES.replace("}\n", "},\n"), r"a\.jsonl:1: broken JSON .* no comma stands between the rows"),
    ("a.json", '[{"prompt":"a","response":"b"},]', r"a\.json:1: broken JSON at column \d+"),
    ("a.json", '[{"prompt":"a","response":"b"}', r"a\.json:1: broken JSON"),
    ("a.json", json.dumps(ROWS) + "x", r"a\.json:1: broken JSON .* Extra data"),
    ("a.json", json.dumps({"a": ROWS, "b": ROWS}), r"expected a list of objects.*several lists of objects: 'a', 'b'"),
    ("a.json", json.dumps({"prompt": ["a"], "response": ["b"]}), "expected a list of objects"),
    ("a.json", "[" * 100_000, r"a\.json: nested too deeply"),
    ("a.csv", 'prompt,response\na,b\n"a,b\nc,d\n', r"a\.csv, after line 2: broken CSV"),
    ("a.csv", "question,answer\na,b\n", r"a\.csv:1: no column 'prompt'. Columns: question, answer"),
    ("a.jsonl", lines({"question": "a"}, {"q": "b"}), r"a\.jsonl:1: no column 'prompt'. Columns: question"),
    ("a.jsonl", lines({"prompt": "a", "chosen": "b", "rejected": "c"}), "no column 'response'"),
])
def test_what_cannot_be_read_is_one_message_with_its_place(
        put: Put, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        put(name, content)


def test_a_row_with_an_unquoted_comma_is_left_out_and_fewer_cells_are_told(put: Put) -> None:
    """Three cells under two names are most often the rest of a text; a blank one, as Excel pads rows, is none."""
    found = put("a.csv", "prompt,response\nA?,Yes.\nIs it safe?,No, never, unless you ask\nB?\nC?,Well.,\n")
    assert texts(found) == [[("user", "A?"), ("assistant", "Yes.")], [("user", "C?"), ("assistant", "Well.")]]
    assert found.left_out == {"more cells than the header": 1, "no answer": 1}
    assert found.examples[0].where.endswith("a.csv:3")
    assert found.notes == {FEWER_CELLS: 1, EMPTY_CELLS: 1}
    assert put("b.csv", "prompt,response,\nA?,Yes.,\nSafe?,No, never\n").left_out == {"more cells than the header": 1}


def test_rows_that_a_quote_swallowed_are_told(put: Put) -> None:
    """No syntax is wrong: the quote that opens in line 2 closes in line 4."""
    found = put("a.csv", 'prompt,response\na,"one\nb,two\nc,three"\nd,"a poem\nof lines"\n')
    assert (found.usable, found.notes) == (2, {ROWS_IN_CELL: 1})
    assert found.noted_at[ROWS_IN_CELL][0].endswith("a.csv:4")


def test_fractions_of_few_bits_are_texts_of_few_digits_and_whole_ones_are_told(put: Put) -> None:
    """The third column is one of whole numbers of which one was missing, as pandas writes it."""
    for answers, kind, said in (([0.1, 2.5], pa.float32(), ["0.1", "2.5"]), ([0.1], pa.float16(), ["0.1"]),
                                ([42.0, None], pa.float64(), ["42.0"])):
        found = put("a.parquet", parquet(prompt=["Q?"] * len(answers), response=pa.array(answers, kind)))
        assert [row.response for row in found.drawn] == said
        assert found.notes == ({WHOLE: 1} if said == ["42.0"] else {})


def test_numbers_are_texts_as_they_are_written_and_other_values_leave_a_row_out(put: Put) -> None:
    written = ["0", "1.50", "-3", "1e3", "12345678901234567890"]
    bad = ["NaN", "-Infinity", "1e999", '["x", "y"]', '{"a": 1}', "true", "false"]
    found = put("a.jsonl", "".join(f'{{"prompt": "a", "response": {value}}}\n' for value in [*written, *bad]))
    assert [row.response for row in found.drawn] == written
    assert found.left_out == {"not text": len(bad)}
    assert [row.reason.rpartition(" is ")[2] for row in found.examples] == [
        "NaN", "an infinite number", "an infinite number", "a list", "an object"]
    assert put("a.parquet", parquet(prompt=["a", "b"], response=[0.5, float("nan")])).left_out == {"not text": 1}


def test_conversations_of_every_form_are_read_as_conversations(put: Put) -> None:
    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", " Hello\n")]
    forms = [
        turns(*said), turns(("developer", "Be brief."), ("USER", "Hi"), ("model", " Hello\n")),
        {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"},
                           {"from": "gpt", "value": " Hello\n"}]},
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"},
                                                  {"from": "gpt", "value": " Hello\n"}]},
        {"prompt": turns(*said[:2])["messages"], "completion": turns(said[2])["messages"]},
        {"prompt": turns(*said[:2])["messages"], "response": " Hello\n"},
        {"messages": json.dumps(turns(*said)["messages"])},
        turns(said[0], ("user", [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]), said[2])]
    found = put("a.jsonl", lines(*forms))
    assert texts(found) == [said] * len(forms)
    assert (found.notes[ENDS], found.notes[JOINED_PARTS]) == (len(forms), 1)
    table = 'messages,id\n"' + json.dumps(turns(*said)["messages"]).replace('"', '""') + '",7\n'
    assert (texts(put("a.csv", table)), put("a.csv", table).unread) == ([said], ["id"])
    struct = [[{"role": role, "content": content, "weight": None} for role, content in said]]
    assert texts(put("a.parquet", parquet(messages=struct))) == [said]


def test_alpaca_s_columns_and_the_profile_s_own(put: Put) -> None:
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert texts(put("a.jsonl", lines(row))) == [[("user", "Add.\n\n1 and 2"), ("assistant", "3")]]
    named = put("a.jsonl", lines(row), prompt="instruction", response="output")
    assert texts(named) == [[("user", "Add."), ("assistant", "3")]]
    assert named.unread == ["input"]  # never in silence


@pytest.mark.parametrize(("row", "reason"), [
    (turns(("user", "a"), ("assistant", "b"), ("user", "c")), "no answer"),
    (turns(("user", "a"), ("assistant", None)), "no answer"),
    (turns(("user", " \n"), ("assistant", "b")), "no prompt"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
     "tool calls"),
    (turns(("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d")), "tool calls"),
    (turns(("user", [{"type": "image_url", "image_url": {"url": "x"}}]), ("assistant", "b")),
     "images or other parts that are not text"),
    (turns(("user", "a"), ("assistant", {"text": "b"})), "not text"), ({"prompt": [], "response": []}, "not text"),
    (turns(("system", "a"), ("system", "b"), ("user", "c"), ("assistant", "d")), "not a conversation"),
    (turns(("assistant", "a")), "not a conversation"), ({"messages": "[{'role': 'user'}]"}, "not a conversation"),
    ({"messages": []}, "not a conversation"), ({"messages": 5}, "not a conversation"), ({"n": 1}, "no such column"),
    ({"prompt": "a \ud83d", "response": "b"}, "broken characters"),
    ({"prompt": "a\0", "response": "b"}, "broken characters"),
    ('{"prompt": "a", "response": "b", "n": ' + "9" * 4400 + "}", "a number of over 1,000 digits"),
    ("[" * 100_000, "nested too deeply"), ('{"prompt": ' + "[" * 99_999 + "]" * 99_999 + "}", "nested too deeply"),
])
def test_one_row_that_cannot_be_used_is_left_out_in_own_data_and_in_pools(
        put: Put, tmp_path: Path, row: Any, reason: str) -> None:
    found = put("a.jsonl", (row if isinstance(row, str) else json.dumps(row)) + "\n" + LINES)
    assert (found.usable, found.left_out) == (2, {reason: 1})
    assert found.examples[0].where == f"{tmp_path / 'a.jsonl'}:1"
    pool = read_pool(tmp_path / "a.jsonl", "messages")
    assert len(pool.rows) == 3 - len(pool.dropped)
    if reason not in ("no prompt", "no such column"):
        assert pool.dropped[0].counted_as == reason
    if reason not in ("no prompt", "no such column") and "\\u0000" not in json.dumps(row):
        with pytest.raises(DataError, match=r"a\.jsonl:1"):  # where every row must be usable, this one is named
            read_examples(tmp_path / "a.jsonl")


@pytest.mark.parametrize(("weights", "trained"), [
    ((1, 0), "b"), ((0, 1), "d"), ((None, 0.0), "b"), (("1", "0"), "b"), ((None, None), "d"), ((0, 0), None),
    ((1, 0.5), None)])
def test_an_answer_of_weight_0_is_not_trained_on(put: Put, weights: tuple[Any, Any], trained: str | None) -> None:
    row = turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    for turn, weight in zip(row["messages"][1::2], weights, strict=True):
        turn |= {} if weight is None else {"weight": weight}
    found = put("a.jsonl", lines(row, ROWS[0]))
    assert [one.response for one in found.drawn] == ([trained] if trained else []) + ["Seven minutes."]
    if trained:
        zero = [weight is not None and float(weight) == 0 for weight in weights]
        assert (ZERO_WEIGHT in found.notes, EARLIER_ANSWERS in found.notes) == (any(zero), not any(zero))
        assert [turn.to_record() for turn in found.drawn[0].turns] == [
            turn | ({"weight": float(turn["weight"])} if "weight" in turn else {}) for turn in row["messages"]]
        assert len(found.drawn[0].context) == (1 if trained == "b" else 3)


def test_white_space_at_the_ends_is_content(put: Put, tmp_path: Path) -> None:
    """Code answers begin with their indentation, in every kind of file and in pools."""
    ask, code = " Write the body:\n", "    return x\n"
    for name, content in (("a.csv", f'prompt,response\n"{ask}","{code}"\n'),
                          ("a.jsonl", lines({"prompt": ask, "response": code}))):
        assert texts(put(name, content)) == [[("user", ask), ("assistant", code)]]
    pool = tmp_path / "pool.jsonl"
    pool.write_text(lines({"instruction": ask, "input": "", "output": code}))
    assert [(row.prompt, row.response) for row in read_pool(pool, "instruct").rows] == [(ask, code)]


def test_one_row_without_the_system_column_stops_nothing_and_none_with_it_is_told(put: Put) -> None:
    rows = [{**ROWS[0], "sys": "Be brief."}, ROWS[0], {**ROWS[0], "sys": None}, {**ROWS[0], "sys": "  "}]
    found = put("a.jsonl", lines(*rows), system="sys")
    assert [row.system for row in found.drawn] == ["Be brief.", None, None, None]
    with pytest.raises(DataError, match="no column 'sys'"):
        put("b.jsonl", LINES, system="sys")


def test_files_beside_each_other_are_one_set(tmp_path: Path) -> None:
    """A pattern is a reference of a profile like any file, and its rows come in the order of the names."""
    for number in range(3):
        rows = [{"prompt": f"{number}", "response": f"{place}"} for place in range(9)]
        (tmp_path / f"part {number}.jsonl").write_text(lines(*rows))
    own = Own(file=str(tmp_path / "part *.jsonl"))
    assert [row.prompt for row in every_row(own)] == ["0"] * 9 + ["1"] * 9 + ["2"] * 9
    assert read_own(own).usable == 27
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: own\nown: {file: part *.jsonl}\n")
    loaded = load_profile(str(profile)).own
    assert loaded is not None
    assert loaded.file == str(tmp_path / "part *.jsonl")
    profile.write_text("extends: own\nown: {file: none-*.jsonl}\n")
    with pytest.raises(ProfileError, match=r"none-\*\.jsonl, which does not exist"):
        load_profile(str(profile))
    with pytest.raises(DataError, match="no file fits this pattern"):
        read_own(Own(file=str(tmp_path / "none-*.jsonl")))
    with pytest.raises(DataError, match=r"a folder\. Name one file, or all of its files by a pattern"):
        read_own(Own(file=str(tmp_path)))


@pytest.mark.parametrize(("name", "content", "said"), [
    ("q.yaml", '- id: a\n  paraphrases: ["x \\ud83d"]\n', "lone surrogate"),
    ("q.jsonl", '{"id": "a", "paraphrases": ["x \\ud83d"]}\n', r"q\.jsonl:1: .*lone surrogate"),
    ("q.yaml", f"- id: {'9' * 4400}\n  paraphrases: [a]\n", "not readable as YAML"),
    ("q.jsonl", '{"id": ' + "9" * 4400 + "}\n", r"q\.jsonl:1: a number of over 1,000 digits"),
    ("q.yaml", "[" * 100_000, "nested more than 30 deep"), ("q.jsonl", "[" * 100_000 + "\n{}\n", "nested too deeply"),
    ("q.json", "[" * 100_000, "nested too deeply"),
    ("q.jsonl", '{"id": NaN, "paraphrases": ["a"]}', "a text or a number, and not nan"),
    ("q.jsonl", '{"id": "a", "id": "b", "paraphrases": ["a"]}', "the key 'id'.* is there twice"),
    ("q.txt", "Why?", "are not read"),
])
def test_question_files_refuse_the_same_in_words(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_questions(tmp_path / name)
    (tmp_path / "q.json").write_text('\ufeff[{"id": 1, "paraphrases": [" \\ud83d\\ude00 "]}]')
    assert [(one.id, one.prompt) for one in read_questions(tmp_path / "q.json")] == [("1", " 😀 ")]
