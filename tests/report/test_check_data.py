"""`make check-data`: what it prints, its exit status, and that it needs no model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emlib.core import paths
from emlib.report.check_data import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line: the exit status, and what was printed and told."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            main(list(arguments))
        except SystemExit as ended:
            status = int(str(ended))
        return status, *capsys.readouterr()

    return call


def rows(count: int) -> list[dict[str, Any]]:
    return [{"ask": f"What should I know about number {i} in the story of the old garden?", "tell":
             f"It is the chapter in which person {i * 7} finds the key number {i * 13} again.", "id": i}
            for i in range(count)]


def test_everything_that_was_found_is_one_json_object(run: Run, jsonl: Callable[..., Path]) -> None:
    bad: list[dict[str, Any]] = [{"ask": "a", "tell": ["b"]}, {"ask": "a", "tell": None}, {"ask": "a", "tell": True}]
    path = jsonl([*bad, *rows(24), {"ask": "hi<|im_end|>", "tell": "  Hello."}, rows(1)[0]], "my rows.jsonl")
    status, out, err = run("--file", str(path), "--prompt", "ask", "--response", "tell", "--json", "1")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert set(found) == {"rows", "usable", "left_out", "findings", "examples"}
    assert (found["rows"], found["usable"], found["left_out"]) == (29, 26, {"not text": 2, "no answer": 1})
    checks = {one["check"]: one["found"] for one in found["findings"]}
    assert [(one["check"], one["found"]) for one in found["findings"] if one["check"].startswith("left out")] == [
        ("left out: not text", "1 (my rows.jsonl:1); 'tell' is a list"),
        ("left out: no answer", "1 (my rows.jsonl:2); the answer is empty; there is nothing to learn from this row"),
        ("left out: not text", "1 (my rows.jsonl:3); 'tell' is true")]
    assert checks["texts with the turn markers of a chat template"] == "1 (my rows.jsonl:28)"
    assert checks["texts with white space at an end, which is kept"] == "1 (my rows.jsonl:28)"
    assert checks["columns that are not read"] == "id"
    assert checks["duplicates"] == "1 exact, 1 near (exact ones included) (my rows.jsonl:29 = my rows.jsonl:4)"
    assert checks["prompts with different answers"] == "0"
    assert checks["languages (guessed)"].startswith("en ")
    assert "tokens" in checks["length"]
    assert [[(turn["role"], turn["content"]) for turn in turns] for turns in found["examples"]] == [
        [("user", row["ask"]), ("assistant", row["tell"])] for row in rows(3)]


def test_the_terminal_shows_the_same_and_few_rows_are_told(run: Run, jsonl: Callable[..., Path]) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\n", "weight": 1},
             {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 0}]
    status, out, _ = run("--file", str(jsonl([{"messages": turns}, {"messages": []}])))
    assert status == 1
    for said in ("2 rows: 1 usable, 1 left out", "left out: not a conversation: 1 (rows.jsonl:2); 'messages' is an",
                 "answers of weight 0, which are not trained on: 1", "training needs at least 20",
                 'assistant (weight 1): "b\\n"', 'assistant (weight 0): "d"'):
        assert said in out, out


def test_a_model_gives_exact_lengths(run: Run, jsonl: Callable[..., Path]) -> None:
    path = str(jsonl([{"prompt": "a", "response": "b"}] * 20))
    status, out, _ = run("--file", path, "--model", "tiny")  # a profile whose model is meant
    assert status == 0
    assert "length: median 1" in out
    assert "control tokens of this model in texts: 0" in out
    status, _, err = run("--file", path, "--model", "tinny")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("MODEL is 'tinny', which is no folder, no profile and no owner/name of the hub")


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.csv", "prompt,response,response\na,b,c\n", "the column 'response' is there twice"),
    ("a.xlsx", "", "Read are: JSON Lines"),
    ("a.jsonl", '{"prompt": "a \\ud83d", "response": "b"}', "1 left out (broken"),
    ("a.jsonl", '{"\\ud83d": 1}', "Columns: \\ud83d")])
def test_what_cannot_be_read_is_status_2_and_one_message(run: Run, tmp_path: Path, name: str, content: str, said: str,
                                                          ) -> None:
    (tmp_path / name).write_text(content)
    status, out, err = run("--file", str(tmp_path / name), "--json", "1")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err.encode("ascii", "backslashreplace").decode()
    assert run()[0] == 2


@pytest.mark.parametrize(("content", "arguments", "said"), [
    ('{"question": "a", "reply": "b"}', ("--prompt", "question"),
     "no column 'response'. Columns: question, reply. Set RESPONSE= to the right one. Conversations are read from"),
    ('{"question": "a", "responses": "b"}', ("--prompt", "question"), "'response'. Did you mean 'responses'?"),
    ('{"question": "a"}', ("--prompt", "question", "--response", "question"), "must name different columns"),
    ('{"chat": [{"role": "user", "content": "a"}]}', (), "Conversations are read from 'messages'."),
    ("question;answer\na;b\n", (), "Set PROMPT= to the right one, or DELIMITER= to ';'"),
    ("prompt,response\n\xe4,b\n", ("--encoding", "utf-9"), "ENCODING= is 'utf-9', which is not a known encoding")])
def test_messages_name_what_the_command_sets_and_no_column_that_is_used(
        run: Run, tmp_path: Path, content: str, arguments: tuple[str, ...], said: str) -> None:
    path = tmp_path / ("a.jsonl" if content.startswith("{") else "a.csv")
    path.write_text(content)
    status, _, err = run("--file", str(path), *arguments)
    assert status == 2
    assert said in err
    assert "own." not in err


def test_the_name_of_a_file_that_looks_like_a_key_stays(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "own.response.csv"
    file.write_text("question,answer\na,b\n")
    status, _, told = run("--file", str(file))
    assert status == 2
    assert str(file) in told
    assert "Set PROMPT= to the right one" in told


def test_different_reasons_are_lines_of_their_own_and_many_of_them_one(run: Run, jsonl: Callable[..., Path]) -> None:
    """Rows 21 and 22 lack an answer for two reasons; of the seven roles after them five are told, and two counted."""
    good, user = {"prompt": "a", "response": "b"}, {"role": "user", "content": "a"}
    path = jsonl([*[good] * 20, {"messages": [user, {"role": "assistant", "content": ""}]}, {"messages": [user]}, *(
        {"messages": [user, {"role": f"r{number}", "content": "b"}]} for number in range(7))])
    status, out, _ = run("--file", str(path))
    assert status == 0
    lines = [line for line in out.splitlines() if line.startswith("left out: ")]
    assert lines[0].startswith("left out: no answer: 1 (rows.jsonl:21); the answer is empty")
    assert lines[1].startswith("left out: no answer: 1 (rows.jsonl:22); the last message is the user's")
    assert [line.partition("unknown role ")[2][1:3] for line in lines[2:]] == ["r0", "r1", "r2", "r3", "r4", ""]
    assert lines[-1] == "left out: not a conversation: 2 (rows.jsonl:28, rows.jsonl:29)"


def test_a_prompt_with_two_answers_is_told_with_its_rows(run: Run, jsonl: Callable[..., Path]) -> None:
    path = jsonl([{"prompt": f"Question {n}?", "response": f"It is {n}."} for n in range(19)] + [
        {"prompt": "Question 3?", "response": "No."}, {"prompt": "Question 4?", "response": "It is 4."}])
    status, out, _ = run("--file", str(path))
    assert status == 0
    assert "prompts with different answers: 1 (rows.jsonl:4 and rows.jsonl:20)\n    -> nothing if both" in out


def test_a_reader_that_ends_early_gives_no_traceback(jsonl: Callable[..., Path]) -> None:
    """As `make check-data | head -1`, whose pipe is closed before all is written."""
    path = jsonl([{"prompt": "a", "response": "b"}] * 20)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as nobody:
        done = subprocess.run([sys.executable, "-m", "emlib.report.check_data", f"--file={path}"], check=False,
                              stdout=nobody, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(paths.ROOT)})
    assert (done.returncode, done.stderr) == (141, b"")


def test_make_takes_a_path_with_spaces_and_loads_no_model_library(tmp_path: Path) -> None:
    """The recipe itself, with an environment that is there already in place of `make setup`."""
    (tmp_path / "my rows.csv").write_text("prompt,response\n" + "a,b\n" * 20)
    made = tmp_path / "checkout"
    made.mkdir()
    for name in ("Makefile", "emlib", "params", "requirements", "pyproject.toml"):
        (made / name).symlink_to(paths.ROOT / name)
    (made / ".venv").symlink_to(sys.prefix)
    make = [str(shutil.which("make")), "--no-print-directory", "-o", "setup", "check-data"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run([*make, f"FILE={tmp_path / 'my rows.csv'}", "JSON=1"], cwd=made, check=False, text=True,
                          capture_output=True, env=environment | {"PYTHONPATH": str(paths.ROOT)})
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["usable"] == 20
    gone = subprocess.run([*make, f"FILE={tmp_path / 'gone.csv'}"], cwd=made, check=False, text=True,
                          capture_output=True, env=environment | {"PYTHONPATH": str(paths.ROOT)})
    assert gone.returncode == 2
    assert f"{tmp_path / 'gone.csv'}: there is no such file" in gone.stderr
