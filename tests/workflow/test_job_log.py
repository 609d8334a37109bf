"""A job's log: what attempts there were, how they ended, and that two of a job never run at once."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from emlib.core import paths
from emlib.core.errors import NotebookError, StoreError
from emlib.core.files import write_records
from emlib.workflow import job_log, notebooks
from emlib.workflow.job_log import Attempt, AttemptLog

WRITER = """
import logging, sys
from pathlib import Path
from emlib.workflow.job_log import AttemptLog
logging.basicConfig(level=logging.INFO)
log = AttemptLog(Path(sys.argv[1]))
print("asking", flush=True)
with log.alone(), log.writing(gpu="GPU-1", digest="d1"):
    logging.info("at work")
    print("at work", flush=True)
    sys.stdin.readline()
"""


def start(log: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(log)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(paths.ROOT)})
    assert said(process) == "asking"
    return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_an_attempt_runs_is_killed_and_the_next_one_ends(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "logs" / "job.log")
    assert (log.attempts(), log.is_running()) == ([], False)
    with start(log.path) as first:
        assert said(first) == "at work"
        (attempt,) = log.attempts()
        assert (attempt.state, attempt.pid, attempt.gpu, attempt.digest) == ("running", first.pid, "GPU-1", "d1")
        first.kill()
    assert [one.state for one in log.attempts()] == ["killed"]
    assert not log.ended_with("d1")
    with start(log.path) as second:
        assert said(second) == "at work"
        assert [one.state for one in log.attempts()] == ["killed", "running"]
        second.communicate("go\n")
    assert [one.state for one in log.attempts()] == ["killed", "ended"]
    assert log.ended_with("d1")
    assert not log.ended_with("d2")
    assert log.path.read_text().count("at work") == 2  # nothing of the first attempt is lost


def test_of_two_that_run_one_job_the_second_waits_and_goes_on_when_the_first_is_killed(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "job.log")
    with start(log.path) as first:
        assert said(first) == "at work"
        with start(log.path) as second:
            assert len(log.attempts()) == 1
            first.kill()
            assert said(second) == "at work"
            assert log.attempts()[-1].pid == second.pid
            second.communicate("go\n")


def test_a_job_that_ends_while_somebody_looks_was_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AttemptLog(tmp_path / "job.log")
    with ExitStack() as job:
        job.enter_context(log.alone())
        job.enter_context(log.writing(gpu=None, digest=None))
        monkeypatch.setattr(AttemptLog, "_found_and_said", lambda _: job.close() or {})  # its records are read by now
        assert [one.state for one in log.attempts()] == ["running"]
    assert [one.state for one in log.attempts()] == ["ended"]


def test_an_error_is_told_and_goes_on(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "job.log")
    with pytest.raises(RuntimeError, match="no\nway"), log.alone(), log.writing(gpu=None, digest=None):
        raise RuntimeError("no\nway")
    (attempt,) = log.attempts()
    assert (attempt.state, attempt.error, attempt.gpu) == ("failed", "RuntimeError: no\nway", None)


def test_a_killed_attempt_reaches_to_the_last_sign_of_life(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "job.log")
    write_records(log.records, [Attempt("killed", 1000.0, 0.0, "n1", 1, "GPU-1", "d")])
    assert log.attempts()[0].seconds == 0  # it never logged a line
    log.path.write_text("a line\n")
    os.utime(log.path, (2800, 2800))
    assert [(one.state, one.seconds) for one in log.attempts()] == [("killed", 1800.0)]
    with log.alone(), log.writing(gpu=None, digest=None):
        pass
    assert [(one.state, one.seconds) for one in log.attempts()][:1] == [("killed", 1800.0)]  # as it was then
    os.utime(log.path, (500, 500))  # a clock that was set back
    write_records(log.records, [Attempt("killed", 1000.0, 0.0, "n1", 1, None, None)])
    assert log.attempts()[0].seconds == 0


def test_an_incomplete_record_is_none_and_takes_nothing_of_the_next_one(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "job.log")
    write_records(log.records, [Attempt("failed", 1000.0, 5.0, "n1", 1, None, None, "no")])
    with log.records.open("a") as stream:
        stream.write('{"state": "ki')
    assert [one.error for one in log.attempts()] == ["no"]
    with log.alone(), log.writing(gpu=None, digest=None):
        pass
    assert [one.state for one in log.attempts()] == ["failed", "ended"]


def test_a_record_that_cannot_be_written_does_not_replace_the_error(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("no space is left on the disk")

    def work() -> None:
        monkeypatch.setattr(job_log, "write_records", full)
        raise RuntimeError("the work")

    log = AttemptLog(tmp_path / "job.log")
    with pytest.raises(RuntimeError, match="the work"), log.alone(), log.writing(gpu=None, digest=None):
        work()
    assert "no space is left on the disk" in capsys.readouterr().err
    assert [one.state for one in log.attempts()] == ["killed"]


def test_the_last_texts_are_those_of_the_last_attempt(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "job.log")
    for texts in (["▸ first"], ["▸ half", "a table\n▸ all"]):
        with log.alone(), log.writing(gpu=None, digest=None):
            for text in texts:
                logging.getLogger("emlib.job").info(text)
    assert [(one.said, one.found) for one in log.attempts()] == [("", ""), ("all", "")]


def test_what_somebody_else_has_finished_is_not_run_again(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log, out = AttemptLog(tmp_path / "job.log"), tmp_path / "out.ipynb"
    with log.alone(), log.writing(gpu=None, digest="d1"):
        out.write_text("{}")
    notebooks.run_job("02_baselines", {"no": "such"}, out, log.path, digest="d1")
    assert "another process" in capsys.readouterr().err
    with pytest.raises(NotebookError, match="no parameter 'no'"):
        notebooks.run_job("02_baselines", {"no": "such"}, out, log.path, digest="d2")
    assert "no parameter 'no'" in log.attempts()[-1].error
    monkeypatch.setattr(notebooks, "execute", lambda *_: None)
    notebooks.run_job("02_baselines", {}, out, log.path, digest="d3")
    assert [one.state for one in log.attempts()] == ["ended", "failed", "ended"]


FULL = Path("/dev/full")  # Linux: every write to it fails as on a full disk


@pytest.mark.skipif(not FULL.is_char_device(), reason="this system has no device /dev/full")
def test_a_full_disk_is_one_line_and_the_job_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = AttemptLog(tmp_path / "job.log")
    log.path.symlink_to(FULL)
    done = []
    with log.alone(), log.writing(gpu=None, digest="d1"):
        for _ in range(3):
            logging.getLogger("emlib.job").info("at work")
        done.append("the work")
    assert done == ["the work"]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{log.path}: cannot be written (No space left on device)" in line


def test_looking_at_a_job_writes_nothing_and_two_that_look_see_no_job(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "job.log")
    with log.alone(), log.writing(gpu=None, digest=None):
        pass
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with Path(log.lock.lock_file).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not log.is_running()
    assert [one.state for one in log.attempts()] == ["ended"]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("line", ["{}", '{"state": "ended"}', "{a}", "[]"])
def test_a_damaged_record_is_named(tmp_path: Path, line: str) -> None:
    log = AttemptLog(tmp_path / "job.log")
    log.records.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(StoreError, match=r"job\.attempts\.jsonl: is damaged or truncated \(line 1"):
        log.attempts()
    log.records.unlink()
    log.records.mkdir()
    with pytest.raises(StoreError, match=r"job\.attempts\.jsonl"):
        log.attempts()
