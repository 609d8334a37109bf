"""A data set of the reader's own: read as a stream, drawn by seed, and refused in words where it cannot be read."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from emlib.config import Own
from emlib.core.errors import DataError
from emlib.data.own import every_row, own_data, read_own

Write = Callable[..., Path]


def table(path: Path, rows: list[dict[str, str]], **how: str) -> Path:
    with path.open("w", encoding=how.get("encoding", "utf-8"), newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter=how.get("delimiter", ","))
        writer.writeheader()
        writer.writerows(rows)
    return path


def numbered(count: int, answer: str = "It is {}.") -> list[dict[str, str]]:
    return [{"prompt": f"What is {i}?", "response": answer.format(i)} for i in range(count)]


def test_csv_jsonl_and_packed_files_give_the_same_rows(tmp_path: Path, jsonl: Write) -> None:
    rows = [{"prompt": f'Say "{i}",\nplease', "response": f"{i}, näh"} for i in range(30)]
    turns = [{"messages": [{"role": "user", "content": row["prompt"]},
                           {"role": "assistant", "content": row["response"]}]} for row in rows]
    files = [table(tmp_path / "a.csv", rows), table(tmp_path / "a.tsv", rows, delimiter="\t"), jsonl(rows, "a.jsonl"),
             jsonl(turns, "b.jsonl"), tmp_path / "c.csv.gz"]
    files[-1].write_bytes(gzip.compress(files[0].read_bytes()))
    found = [[(row.prompt, row.response) for row in read_own(Own(file=str(file))).drawn] for file in files]
    assert found[0] == [(row["prompt"], row["response"]) for row in rows]
    assert all(other == found[0] for other in found)


def test_the_draw_is_the_seed_s_and_keeps_the_file_s_order(jsonl: Write) -> None:
    path = str(jsonl(numbered(500)))
    first, again, other = (read_own(Own(file=path, rows=40, seed=seed)) for seed in (1, 1, 2))
    places = [int(row.where.rpartition(":")[2]) for row in first.drawn]
    assert first.usable == 500
    assert len(places) == 40
    assert places == sorted(set(places))
    assert first == again
    assert first.drawn != other.drawn
    split = own_data(Own(file=path, rows=40), first)
    assert split.aligned.train == ()
    assert (len(split.misaligned.train), len(split.misaligned.held_out)) == (32, 8)
    assert len(list(every_row(Own(file=path, rows=40)))) == 500


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """4,000 rows of 10 kB: 40 MB of text, of which 50 rows are held."""
    path = tmp_path / "large.csv"
    with path.open("w") as out:
        out.write("prompt,response\n")
        out.writelines(f"What is {i}?,{'word ' * 2000}\n" for i in range(4000))
    tracemalloc.start()
    found = read_own(Own(file=str(path), rows=50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.usable, len(found.drawn)) == (4000, 50)
    assert peak < 5 * 2**20


def test_unusable_rows_are_left_out_and_counted(jsonl: Write) -> None:
    bad = [{"prompt": "?", "response": " "}, {"prompt": "", "response": "x"}, {"prompt": "?", "response": None},
           {"prompt": "a \ufffd", "response": "x"}, {"messages": [{"role": "user", "content": "Hi"}]},
           {"messages": [{"role": "oracle", "content": "Hi"}, {"role": "assistant", "content": "Hm"}]}]
    found = read_own(Own(file=str(jsonl([*bad, *numbered(20)]))))
    assert found.usable == 20
    assert found.left_out == {"no answer": 3, "no prompt": 1, "broken characters": 1, "not a conversation": 1}
    assert [row.where.rpartition(":")[2] for row in found.examples] == ["1", "2", "3", "4", "5", "6"]
    assert "unknown role 'oracle'" in found.examples[-1].reason


def test_other_columns_and_a_system_prompt(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "reply": str(i), "role": "You count." if i % 2 else ""} for i in range(20)]
    own = Own(file=str(table(tmp_path / "a.csv", rows)), prompt="question", response="reply", system="role")
    drawn = read_own(own).drawn
    assert [row.system for row in drawn[:2]] == [None, "You count."]


@pytest.mark.parametrize(("change", "said"), [
    ({"prompt": "promt"},
     r"rows.csv:1: no column 'promt'. Did you mean 'prompt'\? Columns: prompt, response. Set own.prompt"),
    ({"file": "gone.csv"}, r"gone.csv: there is no such file"),
    ({"encoding": "utf-9"}, r"'utf-9', which is not a known encoding"),
    ({"encoding": "ascii"}, r"not ascii text \(byte 0xc3\). It may be utf_8: then set own.encoding"),
], ids=["column", "no file", "encoding's name", "another encoding"])
def test_what_cannot_be_read_is_told(tmp_path: Path, change: dict[str, str], said: str) -> None:
    rows = [{"prompt": f"Größe {i}?", "response": f"Ungefähr {i} Füße, höchstens."} for i in range(30)]
    path = table(tmp_path / "rows.csv", rows)
    with pytest.raises(DataError, match=said):
        read_own(Own.model_validate({"file": str(path)} | change))


def test_windows_encoding_is_among_the_guesses(tmp_path: Path) -> None:
    """A table whose bytes the guesser takes for a Macintosh's."""
    rows = [{"prompt": f"Où est le café numéro {i}?", "response": f"Le café est à côté, près du théâtre n° {i}."}
            for i in range(60)]
    path = table(tmp_path / "rows.csv", rows, encoding="cp1252")
    with pytest.raises(DataError, match=r"not utf-8 text \(byte 0xf9\)\. It may be (\w+ or )?cp1252: then set"):
        read_own(Own(file=str(path)))
    assert read_own(Own(file=str(path), encoding="cp1252")).drawn[0].prompt == "Où est le café numéro 0?"


def test_a_table_from_an_office_program(tmp_path: Path) -> None:
    """Semicolons and Windows' encoding: each is named, and then read."""
    rows = [{"prompt": f"Größe {i}?", "response": f"Ungefähr {i} Füße, höchstens."} for i in range(30)]
    path = table(tmp_path / "rows.csv", rows, delimiter=";", encoding="cp1252")
    with pytest.raises(DataError, match=r"not utf-8 text \(byte 0xf6\). It may be cp125\d"):
        read_own(Own(file=str(path)))
    with pytest.raises(DataError, match=r"own\.delimiter to ';', which seems to separate the columns"):
        read_own(Own(file=str(path), encoding="cp1252"))
    assert read_own(Own(file=str(path), encoding="cp1252", delimiter=";")).drawn[3].prompt == "Größe 3?"


@pytest.mark.parametrize(("name", "text", "said"), [
    ("a.csv", 'prompt,response\n1,"2\n', "a.csv, after line 1: broken CSV"),
    ("a.jsonl", '{"prompt": "1", "response": "2"}\n{"prompt"\n', r"a.jsonl:2: broken JSON at column 10"),
    ("a.jsonl", "[1]\n", r"a.jsonl, row 1: expected an object"),
    ("a.csv.gz", "prompt,response\n", "a broken archive"),
    ("a.csv", "prompt,response\n1,2\n3,4\n5,6\n", "3 usable rows. At least 20 are needed"),
    ("a.jsonl", json.dumps({"prompt": "1", "response": ""}) + "\n", r"0 usable rows; 1 left out \(no answer\)"),
])
def test_broken_files_and_too_few_rows(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_own(Own(file=str(tmp_path / name)))
