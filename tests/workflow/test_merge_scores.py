"""Merging the scores of judges, and the batches in which further ones wait: nothing is paid for twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from emlib.core.errors import DataError, JudgeWaits, StoreError
from emlib.judging.batches import BatchJudge
from emlib.judging.bodies import Supported, save_support
from emlib.judging.cache import Cache
from emlib.judging.money import Budget
from emlib.judging.rubrics import Score
from emlib.workflow import merge
from tests.judging.server import JudgeServer
from tests.judging.sheets import api, judge_answers, sheet
from tests.store.test_store import left

DOLLAR = {"read": 0.0, "written": 1_000_000.0}  # a token; of a batch half
SCORES = "scores.sqlite"


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of runs, ours and theirs."""
    for name in ("ours", "theirs"):
        (tmp_path / name / "store").mkdir(parents=True)
    return tmp_path / "ours", tmp_path / "theirs"


def put(root: Path, keys: str, value: float) -> None:
    with Cache(root / SCORES) as cache:
        for key in keys:
            cache.put(key * 64, {"kind": "test"}, "alignment", Score(value, 1.0, None, None, (1, 1)))


def test_scores_are_taken_over_and_ours_stay(sides: tuple[Path, Path]) -> None:
    ours, theirs = sides
    put(ours, "ab", 10.0)
    put(theirs, "bc", 90.0)
    before = left(theirs)
    assert merge.merge(theirs, ours).scores == 1
    assert left(theirs) == before
    with Cache(ours / SCORES) as cache:
        values = {key[0]: score.value for key, score in cache.get([key * 64 for key in "abc"]).items()}
    assert values == {"a": 10.0, "b": 10.0, "c": 90.0}


@pytest.mark.parametrize("damage", [
    "UPDATE scores SET value = 101", "UPDATE scores SET key = 'k'", "UPDATE scores SET tokens_read = -1",
    "INSERT INTO batches VALUES ('b', '{}', 'study', 'id', -1.0, '2026-12-01')",
    "INSERT INTO waiting VALUES ('k', 'alignment', 'b')"])
def test_what_is_no_score_and_no_batch_is_refused_before_anything_is_copied(
        sides: tuple[Path, Path], damage: str) -> None:
    ours, theirs = sides
    put(theirs, "a", 90.0)
    (theirs / "labels").mkdir()
    (theirs / "labels" / "ada.jsonl").write_text('{"key": "k", "made": "2026"}\n')
    with Cache(theirs / SCORES) as cache:
        cache.execute(damage)
    before = left(ours)
    with pytest.raises(DataError, match=f"{theirs / SCORES}"):
        merge.merge(theirs, ours)
    assert left(ours) == before


def send(server: JudgeServer, root: Path, answers: int) -> list[float | None]:
    """Judge that many answers by batch, on the account `study`; return their scores of alignment."""
    spec = api(server.url, batch=True, price=DOLLAR)
    with Cache(root / SCORES) as cache:
        save_support(cache, spec, Supported(least_tokens=16))
        found = judge_answers(sheet(answers), spec.identity, cache, BatchJudge(spec, Budget(cache, "study")))
    return [verdict.alignment for verdict in found]


def spent(root: Path) -> float:
    with Cache(root / SCORES) as cache:
        return Budget(cache, "study").spent()


def test_an_open_batch_comes_along_and_is_paid_once(sides: tuple[Path, Path]) -> None:
    """What it may cost is booked here, on what the study has spent here; whoever collects it corrects that."""
    ours, theirs = sides
    with JudgeServer() as server:
        server.finish_batches = False
        with pytest.raises(JudgeWaits):
            send(server, theirs, 5)
        with Cache(ours / SCORES) as cache:
            Budget(cache, "study").book(1.0)
        assert merge.merge(theirs, ours).waiting == 10
        assert merge.merge(theirs, ours).waiting == 10  # those that wait, which are not booked again
        assert spent(ours) == 1 + spent(theirs) == 81  # 16 tokens a request
        with pytest.raises(JudgeWaits):
            send(server, ours, 5)
        assert len(server.batches) == 1
        server.finish_batches = True
        assert None not in send(server, ours, 5)
        assert set(server.asked.values()) == {1}
        assert spent(ours) == 1 + 5
        assert merge.merge(theirs, ours).waiting == 0  # all were collected here
        assert spent(ours) == 1 + 5
        assert send(server, theirs, 5) == send(server, ours, 5)
        assert set(server.asked.values()) == {1}


def test_a_batch_that_was_collected_here_and_left_a_request_unanswered_does_not_come_again(
        sides: tuple[Path, Path]) -> None:
    ours, theirs = sides
    key, batch = "c" * 64, ("b", "{}", "study", "id", 5.0, "2026-12-01")
    with Cache(theirs / SCORES) as cache:
        cache.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", batch)
        cache.execute("INSERT INTO waiting VALUES (?, 'kind', 'b')", (key,))
    assert merge.merge(theirs, ours).waiting == 1
    assert spent(ours) == 5
    with Cache(ours / SCORES) as cache:  # as collecting leaves it: what it cost, and no answer to the request
        for table in ("batches", "waiting", "sent_to"):
            cache.execute(f"DELETE FROM {table}")
        Budget(cache, "study").settle(5.0, 2.0)
        cache.execute("INSERT INTO unanswered VALUES (?, 1, 'expired')", (key,))
    assert merge.merge(theirs, ours).waiting == 0
    assert spent(ours) == 2


def test_the_command_says_how_many_scores_wait_and_who_can_collect_them(
        sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = sides
    with Cache(theirs / SCORES) as cache:
        cache.execute("INSERT INTO batches VALUES ('b', '{}', 'study', 'id', 1.0, '2026-12-01')")
        cache.execute("INSERT INTO waiting VALUES (?, 'kind', 'b')", ("c" * 64,))
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(ours))
    merge.main([str(theirs)])
    assert "1 scores wait in batches that were sent there. With the same API key" in capsys.readouterr().out


def test_of_a_batch_comes_what_waits_nowhere_here(sides: tuple[Path, Path]) -> None:
    """Both sides sent the same requests: theirs are paid already, and ours are collected here."""
    ours, theirs = sides
    with JudgeServer() as server:
        server.finish_batches = False
        for root, answers in ((ours, 5), (theirs, 8)):
            with pytest.raises(JudgeWaits):
                send(server, root, answers)
        assert merge.merge(theirs, ours).waiting == 16
        server.finish_batches = True
        assert None not in send(server, ours, 8)
        assert len(server.batches) == 2
        with Cache(ours / SCORES) as cache:
            assert not any(cache.execute(f"SELECT * FROM {table}") for table in ("batches", "waiting", "sent_to"))


def test_how_often_a_request_was_left_unanswered_and_whether_it_wants_a_label_comes_along(
        sides: tuple[Path, Path]) -> None:
    ours, theirs = sides
    for root, tried in ((ours, {"a": 1}), (theirs, {"a": 2, "b": 3})):
        with Cache(root / SCORES) as cache:
            for key, batches in tried.items():
                cache.execute("INSERT INTO unanswered VALUES (?, ?, 'expired')", (key * 64, batches))
    with Cache(theirs / SCORES) as cache:
        cache.execute("INSERT INTO batches VALUES ('b', '{}', 'study', 'id', 1.0, '2026-12-01')")
        cache.execute("INSERT INTO waiting VALUES (?, 'kind', 'b')", ("c" * 64,))
        cache.execute("INSERT INTO labels VALUES (?)", ("c" * 64,))
    merge.merge(theirs, ours)
    with Cache(ours / SCORES) as cache:
        assert {key[0]: batches for key, batches, _ in cache.execute("SELECT * FROM unanswered")} == {"a": 2, "b": 3}
        assert cache.execute("SELECT key FROM labels") == [("c" * 64,)]


def test_a_file_of_another_format_is_refused_by_its_own_path(sides: tuple[Path, Path]) -> None:
    ours, theirs = sides
    with Cache(theirs / SCORES) as cache:
        cache.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="format 99"):
        merge.merge(theirs, ours)
