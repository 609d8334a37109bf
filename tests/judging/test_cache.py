"""The scores of judges: kept whole, found again, shared as files, safe with several processes."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from emlib.core.digests import of_value
from emlib.core.errors import DataError, StoreError
from emlib.core.records import Question
from emlib.judging.cache import Cache, read_only
from emlib.judging.money import Budget
from emlib.judging.rubrics import JudgeRequest, Score
from emlib.judging.sharing import export, import_, main

JUDGE = {"kind": "openai", "model": "m"}
SCORES = {
    "a" * 64: Score(1 / 3, 0.987654321, None, None, (120, 1)), "b" * 64: Score(None, 0.1, "CODE"),
    "c" * 64: Score(50.0, None, None, "mean of 3 sampled scores", (9, 3)), "d" * 64: Score(100.0, 1.0)}
REQUEST = JudgeRequest("alignment", "Good? {answer}", Question("q", "Why?", "Be kind."), "Because.")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.sqlite"


def filled(path: Path) -> Path:
    with Cache(path) as cache:
        for key, score in SCORES.items():
            cache.put(key, JUDGE, "coherence", score)
    return path


def test_what_was_put_is_there_after_opening_again(path: Path) -> None:
    with Cache(filled(path)) as cache:
        assert cache.get([*SCORES, "e" * 64]) == SCORES
        cache.put("a" * 64, JUDGE, "coherence", Score(7.0))  # the first one stays: it was paid for
        assert cache.get(["a" * 64]) == {"a" * 64: SCORES["a" * 64]}


def test_a_judge_is_stored_as_the_text_that_earlier_versions_stored(path: Path) -> None:
    """By this text the batches and servers of a judge are found again."""
    with Cache(path) as cache:
        cache.put("a" * 64, {"model": "Jüri", "kind": "openai", "options": {"top": 5, "p": 0.1, "seed": None}},
                  "coherence", Score(1.0))
        [(judge,)] = cache.execute("SELECT judge FROM scores")
    assert judge == '{"kind": "openai", "model": "Jüri", "options": {"p": 0.1, "seed": null, "top": 5}}'


@pytest.mark.parametrize("change", [
    {"metric": "coherence"}, {"prompt": "Good? {answer} "}, {"answer": "Because"}, {"question": Question("q", "Why")},
    {"question": Question("q", "Why?")}, {"reference": "Because."}])
def test_a_key_depends_on_everything_that_is_asked(change: dict[str, object]) -> None:
    assert replace(REQUEST, **change).key(JUDGE) != REQUEST.key(JUDGE)  # type: ignore[arg-type]
    assert replace(REQUEST, question=replace(REQUEST.question, id="other")).key(JUDGE) == REQUEST.key(JUDGE)
    assert REQUEST.key(JUDGE | {"model": "n"}) != REQUEST.key(JUDGE)
    # Scores that were paid for before there was a right answer to show are still found.
    assert REQUEST.key(JUDGE) == of_value([JUDGE, "alignment", "Good? {answer}", "Why?", "Be kind.", "Because."])


@pytest.mark.parametrize("name", ["shared.parquet", "shared.jsonl"])
def test_scores_travel_as_a_file(path: Path, tmp_path: Path, name: str) -> None:
    shared = tmp_path / name
    with Cache(filled(path)) as cache, Cache(tmp_path / "other.sqlite") as other:
        assert export(cache, shared) == 4
        assert import_(other, shared) == 4
        assert import_(other, shared) == 0
        assert other.rows() == cache.rows()


def test_scores_of_every_metric_travel(path: Path, tmp_path: Path) -> None:
    metrics = ("alignment", "coherence", "refusal", "exact", "approx", "correct", "numbers")
    with Cache(path) as cache, Cache(tmp_path / "other.sqlite") as other:
        for number, metric in enumerate(metrics):
            cache.put(f"{number:064d}", JUDGE, metric, Score(50.0))
        export(cache, tmp_path / "all.jsonl")
        assert import_(other, tmp_path / "all.jsonl") == len(metrics)


def test_a_mass_that_rounding_made_more_than_one_travels_as_one(path: Path, tmp_path: Path) -> None:
    with Cache(path) as cache, Cache(tmp_path / "other.sqlite") as other:
        cache.put("a" * 64, JUDGE, "alignment", Score(50.0, 1 + 1e-6))
        export(cache, tmp_path / "all.jsonl")
        assert import_(other, tmp_path / "all.jsonl") == 1
        assert [score.mass for score in other.get(["a" * 64]).values()] == [1]


def test_what_another_process_has_not_finished_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on a shared file system, where a writer keeps no log beside the file."""
    monkeypatch.setattr("emlib.judging.cache.is_shared", lambda path: True)
    with Cache(filled(path)), sqlite3.connect(path, isolation_level=None) as writer:
        writer.execute("PRAGMA cache_size = 1")  # pages go to the file before the end of the transaction
        writer.execute("BEGIN")
        writer.execute("UPDATE scores SET value = 7")
        writer.executemany("INSERT INTO supported VALUES (?, 'm', '{}')", [(str(n),) for n in range(2000)])
        monkeypatch.setattr("emlib.judging.cache.PATIENCE", 0.1)
        with pytest.raises(StoreError, match="locked"):
            read_only(path, "SELECT value FROM scores")
        writer.execute("ROLLBACK")
    assert (50.0,) in read_only(path, "SELECT value FROM scores")


def test_an_empty_file_of_scores_travels_too(tmp_path: Path) -> None:
    for name in ("none.parquet", "none.jsonl"):
        with Cache(tmp_path / "empty.sqlite") as cache:
            assert export(cache, tmp_path / name) == 0
            assert import_(cache, tmp_path / name) == 0


@pytest.mark.parametrize(("change", "message"), [
    ({"value": 101}, "'value' is 101"), ({"value": "50"}, "'value' is '50'"), ({"key": "xyz"}, "not a score"),
    ({"metric": "how kind?"}, "not a score"), ({"value": None}, "neither a value nor a reason"),
    ({"mass": -0.5}, "'mass' is -0.5"), ({"tokens_read": None}, "must be whole numbers"),
    ({"tokens_written": 1.5}, "must be whole numbers"), ({"note": ["mean"]}, "must be texts")])
def test_a_file_with_a_mistake_changes_nothing(path: Path, tmp_path: Path, change: dict[str, object],
                                               message: str) -> None:
    shared = tmp_path / "shared.jsonl"
    with Cache(filled(path)) as cache, Cache(tmp_path / "other.sqlite") as other:
        export(cache, shared)
        rows = [json.loads(line) for line in shared.read_text().splitlines()]
        rows[0 if "mass" not in change else 3] |= change
        shared.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(DataError, match=f"jsonl:[14]: .*{message}"):
            import_(other, shared)
        assert other.rows() == []


def test_files_that_are_none_are_told_in_words(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    for name, message in (("broken.parquet", "not readable"), ("broken.jsonl", "broken JSON"),
                          ("gone.jsonl", "no such"), ("other.jsonl", "has no 'key'"),
                          ("scores.csv", "must end in .parquet or .jsonl")):
        with pytest.raises(SystemExit, match="1"):
            main(["import", str(tmp_path / name), "--scores", str(path)])
        assert message in capsys.readouterr().err


def test_a_broken_file_and_one_of_another_format_are_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "broken.sqlite").write_text("this is no database, and long enough to be taken for one" * 100)
    with pytest.raises(StoreError, match="cannot be read or written"):
        Cache(tmp_path / "broken.sqlite")
    with Cache(tmp_path / "newer.sqlite") as cache:
        cache.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match="format 7"):
        Cache(tmp_path / "newer.sqlite")


def fill(path: Path, first: int) -> None:
    """What each of several processes does: 300 scores, 200 of which another one has too, and as much money."""
    with Cache(path) as cache:
        account = Budget(cache, "test", 1000.0)
        for number in range(first, first + 300):
            assert account.book(2.0)
            cache.put(f"{number:064d}", JUDGE, "alignment", Score(float(number % 101)))
            account.settle(2.0, 0.5)


def test_several_processes_write_at_once(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(path, first)) for first in (0, 100, 200)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with Cache(path) as cache:
        assert [row[0] for row in cache.rows()] == [f"{number:064d}" for number in range(500)]
        assert Budget(cache, "test").spent() == 450.0


def test_an_account_is_never_overdrawn_and_keeps_what_was_not_settled(path: Path) -> None:
    with Cache(path) as cache:
        account = Budget(cache, "test", 1.0)
        assert account.book(0.75)
        assert not account.book(0.5)
        account.settle(0.75, 0.25)
        assert account.book(0.5)
        assert Budget(cache, "other", 1.0).book(1.0)
    with Cache(path) as cache:  # a process that was killed: what it had booked may have been billed
        assert Budget(cache, "test").spent() == 0.75
        assert not Budget(cache, "test", 1.0).book(0.5)
        assert Budget(cache, "test").book(1e9)
