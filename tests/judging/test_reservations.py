"""Two processes that want the same scores: each is asked and paid for once, and a killed one holds nobody up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emlib.core import paths
from emlib.core.errors import JudgeError, JudgeWaits
from emlib.core.process import new_mark
from emlib.judging.batches import BatchJudge
from emlib.judging.cache import Cache
from emlib.judging.money import Budget
from emlib.judging.reservations import Reservations
from emlib.judging.rubrics import Score
from tests.judging.server import JudgeServer
from tests.judging.sheets import api, judge_answers, judged, sheet


@pytest.fixture
def judges(scores: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended with the test."""
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for process in running:
        process.kill()
        process.wait()


def started(server: JudgeServer, answers: int, scores: Path) -> subprocess.Popen[bytes]:
    """A process that judges, whose reservations do not lapse within the test."""
    code = ("import sys; from pathlib import Path; from tests.judging.sheets import api, judged, sheet; "
            "from emlib.judging import reservations; reservations.LIFETIME = 1e6; "
            "judged(api(sys.argv[1], max_concurrency=32), sheet(int(sys.argv[2])), Path(sys.argv[3]))")
    return subprocess.Popen([sys.executable, "-c", code, server.url, str(answers), str(scores)],
                            cwd=paths.ROOT, env=os.environ | {"PYTHONPATH": str(paths.ROOT), "EMLIB_HEADLESS": "1"},
                            stdout=subprocess.DEVNULL)


ENDLESS = 900.0  # seconds after which a test gives up; a busy machine takes minutes to start a process


def wait_until(there: object, seconds: float = ENDLESS) -> None:
    assert callable(there)
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def test_two_processes_ask_for_each_score_once_and_share_the_work(
        scores: Path, judges: list[subprocess.Popen[bytes]]) -> None:
    with JudgeServer(delay=0.05, slots=16) as server:
        judges += [started(server, 150, scores), started(server, 150, scores)]
        assert [process.wait(ENDLESS) for process in judges] == [0, 0]
        assert len(server.answered) == 300
        assert set(server.answered.values()) == {1}
    with Cache(scores) as cache:
        assert len(cache.rows()) == 300
        assert cache.execute("SELECT * FROM reserved") == []


def test_a_killed_process_holds_nobody_up(scores: Path, judges: list[subprocess.Popen[bytes]]) -> None:
    with JudgeServer(delay=0.4, slots=32) as server:
        judges.append(started(server, 60, scores))
        wait_until(lambda: server.busy)
        judges.append(started(server, 60, scores))
        wait_until(lambda: sum(server.answered.values()) >= 40)
        judges[0].send_signal(signal.SIGKILL)
        judges[0].wait()
        at_the_kill = server.most_busy
        assert judges[1].wait(ENDLESS) == 0  # it did not wait for them to lapse
        assert len(server.answered) == 120
        assert max(server.answered.values()) <= 2  # what was under way at the kill
        assert sum(server.answered.values()) <= 120 + at_the_kill


def test_two_sessions_of_one_process_ask_once(scores: Path) -> None:
    with JudgeServer(delay=0.05) as server:
        found: list[object] = []
        threads = [threading.Thread(target=lambda: found.append(judged(api(server.url), sheet(30), scores)))
                   for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found[0] == found[1] == found[2]
        assert set(server.asked.values()) == {1}


def test_what_a_machine_that_is_gone_reserved_is_free_after_a_while(
        scores: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [request.key(api("http://127.0.0.1:1/v1").identity) for request in sheet(5).requests()]
    with Cache(scores) as cache:
        for key in keys[:4]:
            cache.execute("INSERT INTO reserved VALUES (?, ?, ?)", (key, "elsewhere/1/1/x", time.time() + 9999))
        ended = "-".join([*new_mark().split("-")[:3], "1", "0" * 6])  # started at another time than this process
        cache.execute("INSERT INTO reserved VALUES (?, ?, ?)", (keys[5], ended, time.time() + 9999))
    with JudgeServer() as server, ThreadPoolExecutor() as pool:
        verdicts, said = pool.submit(judged, api(server.url), sheet(5), scores), [""]
        wait_until(lambda: said.append(said[-1] + capsys.readouterr().out) or (
            "4 scores are being asked for by another process" in said[-1]))
        assert sum(server.answered.values()) == 6
        with Cache(scores) as cache:
            cache.execute("UPDATE reserved SET expires = 0")
        assert all(verdict.scored for verdict in verdicts.result())
        assert set(server.asked.values()) == {1}


def test_a_reservation_is_taken_once_renewed_and_let_go(scores: Path) -> None:
    with Cache(scores) as cache:
        mine, other = Reservations(cache), Reservations(cache)
        assert mine.take("a") is True
        assert mine.take("a") is True
        assert other.take("a") is False
        assert other.by_others() == {"a"}
        assert mine.by_others() == set()
        mine.release("a")
        assert other.take("a") is True
        other.release_all()
        cache.put("a", {}, "alignment", Score(7.0))
        assert mine.take("a") == Score(7.0)
        mine.take("b")
        cache.execute("UPDATE reserved SET expires = 0")
        assert mine.by_others() == other.by_others() == set()
        mine.renew()
        assert other.by_others() == {"b"}


def test_what_waits_in_a_batch_cannot_be_reserved_at_its_server(scores: Path) -> None:
    with Cache(scores) as cache:
        here, elsewhere = Reservations(cache, "http://here"), Reservations(cache, "http://elsewhere")
        cache.execute("INSERT INTO waiting VALUES ('a', 'alignment', 'first'), ('b', 'alignment', 'second')")
        cache.execute("INSERT INTO sent_to VALUES ('first', 'http://here')")  # the second was sent by an older version
        assert [here.take("a"), here.take("b"), here.take("c")] == [False, False, True]
        assert [elsewhere.take("a"), elsewhere.take("b")] == [True, False]
        assert here.in_batches("abcd") == {"a", "b"}


def test_a_stopped_session_lets_its_reservations_go(scores: Path) -> None:
    with JudgeServer() as server:
        server.refuse = 401, "invalid_api_key"
        with pytest.raises(JudgeError, match="refuses the key"):
            judged(api(server.url), sheet(50), scores)
    with Cache(scores) as cache:
        assert cache.execute("SELECT * FROM reserved") == []


def test_a_batch_judge_that_waited_for_another_does_not_send_what_that_collected(scores: Path) -> None:
    """The other process looks up first, and holds the lock when the first one comes to it."""
    spec = api("http://127.0.0.1:1/v1", batch=True)
    asked = sheet(10)
    with JudgeServer() as server:
        spec = api(server.url, batch=True)
        with Cache(scores) as cache, Cache(scores) as other:
            judge = BatchJudge(spec, Budget(cache, "test"))
            with pytest.raises(JudgeWaits):
                judge_answers(asked, spec.identity, cache, judge)

            def late(requests: object, keep: object) -> None:
                judge_answers(asked, spec.identity, other, BatchJudge(spec, Budget(other, "test")))
                judge(requests, keep)  # type: ignore[arg-type]

            assert all(verdict.scored for verdict in judge_answers(asked, spec.identity, cache, late))
        assert len(server.batches) == 1
        assert set(server.answered.values()) == {1}
