"""What `make status` says: states by output and log, hours by hand, and that it is asked while jobs run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from emlib.config import load_profile
from emlib.core import paths
from emlib.core.files import write_records
from emlib.judging.cache import Cache
from emlib.judging.money import Budget
from emlib.study import stamps
from emlib.workflow import graph
from emlib.workflow.job_log import Attempt, AttemptLog, State
from emlib.workflow.status import JobStatus, hours, hours_left, report, spent, stale, statuses, time_left
from tests.workflow.test_job_log import said, start

JOBS = {job.name: job for job in graph.jobs("tiny")}


def attempt(name: str, state: State, minutes: float, *, gpu: str | None = "GPU-1", error: str = "",
            digest: str | None = None) -> Attempt:
    return Attempt(state, 0.0, 60 * minutes, "n1", 1, gpu, digest or JOBS[name].digest, error)


def log(folder: Path, name: str, *attempts: Attempt) -> None:
    """The records of a job's attempts."""
    write_records(AttemptLog(folder / JOBS[name].log).records, attempts)


def output(folder: Path, name: str) -> None:
    path = folder / JOBS[name].output
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two jobs done in half an hour and in one and a half, one failed after six minutes, one of another content."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    here = tmp_path / "tiny"
    log(here, "02_baselines", attempt("02_baselines", "ended", 30))
    log(here, "05_kl", attempt("05_kl", "failed", 30, error="no"),
        attempt("05_kl", "ended", 60, gpu="GPU-1,GPU-2"))
    log(here, "06_ldifs", attempt("06_ldifs", "failed", 6, error="NotebookError: no way"))
    log(here, "01_data", attempt("01_data", "ended", 12, gpu=None, digest="other"))
    for name in ("02_baselines", "05_kl", "01_data"):
        output(here, name)
    return here


def states(folder: Path) -> dict[str, JobStatus]:
    return {status.job.name: status for status in statuses(folder, JOBS.values())}


def test_each_job_has_its_state(folder: Path) -> None:
    found = {name: status.state for name, status in states(folder).items()}
    assert {name for name, state in found.items() if state == "done"} == {"02_baselines", "05_kl"}
    assert {name for name, state in found.items() if state == "failed"} == {"06_ldifs"}
    assert found["01_data"] == "waiting"  # it ran, but not what it would run now
    assert len([state for state in found.values() if state == "waiting"]) == len(JOBS) - 3


def test_an_output_without_a_log_is_done_and_one_that_was_removed_is_not(folder: Path) -> None:
    output(folder, "08_inoculation")
    (folder / JOBS["02_baselines"].output).unlink()
    assert (states(folder)["08_inoculation"].state, states(folder)["02_baselines"].state) == ("done", "waiting")


def test_hours_are_those_of_all_attempts_and_what_is_left_is_what_others_took(folder: Path) -> None:
    found = list(states(folder).values())
    assert hours(found) == pytest.approx(0.5 + 1.5 + 0.1 + 0.2)
    assert hours(found, gpu=True) == pytest.approx(0.5 + 0.5 + 2 * 1.0 + 0.1)  # an hour on two GPUs
    # Both finished jobs took an hour in the mean; of ldifs' hour a tenth has passed, all others have not begun.
    waiting = [one for one in found if one.job.trains and one.state != "done"]
    assert hours_left(found) == pytest.approx(len(waiting) - 0.1)
    assert hours_left([one for one in found if one.state != "done"]) is None
    assert hours_left([one for one in found if one.state == "done"]) == 0


def test_an_executed_notebook_says_itself_what_it_ran(folder: Path) -> None:
    """Also one that ran by hand, or on another machine, of which this one has no attempts, or those of another run."""
    job = JOBS["05_kl"]
    for stamp, state in ((job.stamp, "done"), (stamps.of_job("former", ""), "waiting"),
                         (stamps.of_job(job.digest, "--dataset cooking"), "waiting")):
        book = {"cells": [], "metadata": {"made_with": f"emlib-profile-0 {stamp}"}}
        (folder / job.output).write_text(json.dumps(book))
        assert states(folder)["05_kl"].state == state
        assert stale(folder, [job]) == ([] if state == "done" else [job.output])
    (folder / job.output).unlink()
    assert stale(folder, [job]) == []


def of(name: str, state: Literal["done", "running", "waiting"], minutes: float, jobs: Any = JOBS) -> JobStatus:
    """The status of a job that has run for so long."""
    last = Attempt("ended" if state == "done" else "running", 0.0, 60 * minutes, "n1", 1, None, jobs[name].digest)
    return JobStatus(jobs[name], state, (last,) if minutes else ())


def test_the_time_left_is_that_of_jobs_that_run_at_once(folder: Path) -> None:
    done, waiting = of("02_baselines", "done", 60), [of("06_ldifs", "waiting", 0), of("08_inoculation", "waiting", 0)]
    two = [done, of("05_kl", "running", 30), of("09_interleaving", "running", 30), *waiting]
    assert (hours_left(two), time_left(two)) == (3.0, 1.5)
    assert time_left([done, *waiting]) == 2.0
    one_is_longer = [done, of("05_kl", "running", 57), of("09_interleaving", "running", 3)]
    assert time_left(one_is_longer) == pytest.approx(0.95)  # not half of an hour
    assert (time_left([done]), time_left(waiting)) == (0.0, None)


def test_a_chapter_after_its_slices_is_none_of_the_hours_left() -> None:
    jobs = {job.name: job for job in graph.jobs("paper-7b") if job.chapter == "02_baselines"}
    *slices, whole = jobs
    assert [jobs[name].gathers for name in (*slices, whole)] == [*[False] * len(slices), True]
    found = [of(name, "done", 60, jobs) for name in slices[1:]] + [of(slices[0], "waiting", 0, jobs)]
    assert hours_left([*found, of(whole, "waiting", 0, jobs)]) == 1.0


def test_hours_of_former_content_are_neither_done_nor_those_of_a_job(folder: Path) -> None:
    """Since an edit one job took three hours; another ran two of the former content, and has all three to go."""
    log(folder, "05_kl", attempt("05_kl", "ended", 60, digest="former"), attempt("05_kl", "ended", 180))
    log(folder, "06_ldifs", attempt("06_ldifs", "ended", 120, digest="former"))
    found = states(folder)
    assert (found["05_kl"].state, found["06_ldifs"].state) == ("done", "waiting")
    assert hours_left([found["05_kl"], found["06_ldifs"]]) == pytest.approx(3)


def test_a_job_that_found_its_artefacts_in_the_store_says_nothing_of_the_hours_of_others(folder: Path) -> None:
    """One took two hours and one, and six seconds after an edit that left its steps; the other has not begun."""
    log(folder, "05_kl", attempt("05_kl", "killed", 120, digest="former"), attempt(
        "05_kl", "ended", 60, digest="former"), attempt("05_kl", "ended", 0.1))
    log(folder, "06_ldifs")
    found = states(folder)
    assert (found["05_kl"].state, found["06_ldifs"].state) == ("done", "waiting")
    assert hours_left([found["05_kl"], found["06_ldifs"]]) == pytest.approx(3)


def test_a_judge_that_answers_another_day_is_no_failure(folder: Path) -> None:
    log(folder, "07_persona_steering", attempt(
        "07_persona_steering", "failed", 1, error="NotebookError: 07, cell 3: JudgeWaits: 2 of 4 runs wait"))
    assert states(folder)["07_persona_steering"].state == "waiting"


def test_it_is_told_in_lines_with_the_error_and_the_money(folder: Path) -> None:
    with Cache(folder.parent / "scores.sqlite") as cache:
        assert Budget(cache, "tiny").book(1.25)
        assert Budget(cache, "demo").book(7.0)
    assert spent("tiny") == spent("tiny+1477da") == 1.25  # they share a budget
    lines = list(report("tiny", load_profile("tiny"), list(states(folder).values())))
    assert lines[0] == f"tiny: {len(JOBS)} jobs, 2 done, 0 running, 1 failed, {len(JOBS) - 3} waiting"
    assert "06_ldifs: attempt 1" in lines[1]
    assert str(folder / "logs" / "06_ldifs.log") in lines[1]
    assert lines[2].strip() == "NotebookError: no way"
    assert lines[3].startswith("hours  2.30 computed, 3.10 GPU-hours")
    assert lines[3].endswith(", job after job")
    assert lines[4] == "money  $1.25 spent on judges"
    assert list(report("tiny+1477da", load_profile("tiny"), []))[-1].startswith("money  $1.25 spent on judges by all ")


def test_of_a_long_error_the_last_lines_are_told(folder: Path) -> None:
    text = "\n".join(f"line {number}" for number in range(100))
    log(folder, "06_ldifs", attempt("06_ldifs", "failed", 6, error=f"{text}\n"))
    lines = list(report("tiny", load_profile("tiny"), list(states(folder).values())))
    assert [line.strip() for line in lines[2:-2]] == [f"line {number}" for number in range(88, 100)]


def test_a_running_job_is_seen_from_another_process(folder: Path) -> None:
    with start(folder / JOBS["09_interleaving"].log) as process:
        assert said(process) == "at work"
        done = subprocess.run([sys.executable, "-m", "emlib.workflow.status", "tiny"], check=True, capture_output=True,
                              text=True, env=os.environ | {"PYTHONPATH": str(paths.ROOT)})
        assert "2 done, 1 running, 1 failed" in done.stdout
        assert "running  09_interleaving" in done.stdout
        process.communicate("go\n")


def test_before_anything_ran_everything_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    assert {one.state for one in statuses(tmp_path / "tiny", JOBS.values())} == {"waiting"}
    assert spent("tiny") == 0.0
    assert list(tmp_path.iterdir()) == []


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and bytes, and every folder with its time."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in folder.rglob("*")}


def status() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "emlib.workflow.status", "tiny"], check=False, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(paths.ROOT)})


def test_it_only_reads(folder: Path) -> None:
    with Cache(folder.parent / "scores.sqlite") as cache:
        assert Budget(cache, "tiny").book(1.25)
    (folder / "logs" / ".02_baselines.log.lock").touch()
    before = contents(folder.parent)
    done = status()
    assert (done.returncode, done.stderr) == (0, "")
    assert "$1.25" in done.stdout
    assert contents(folder.parent) == before
    with Cache(folder.parent / "scores.sqlite") as cache:  # while a study is judged
        assert Budget(cache, "tiny").book(1.0)
        assert spent("tiny") == 2.25


def test_jobs_of_an_earlier_version_which_has_no_records_have_the_state_of_their_output(tmp_path: Path) -> None:
    for name in ("02_baselines", "06_ldifs"):
        path = tmp_path / JOBS[name].log
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('2026-11-23T10:00:00Z ■ began {"host": "n1", "pid": 1, "gpu": null, "digest": "d"}\n'
                        '2026-11-23T10:30:00Z ■ failed {"error": "no"}\n', encoding="utf-8")
    output(tmp_path, "02_baselines")
    assert (states(tmp_path)["02_baselines"].state, states(tmp_path)["06_ldifs"].state) == ("done", "waiting")
    assert hours(states(tmp_path).values()) == 0


@pytest.mark.parametrize("file", ["tiny", "tiny/logs", "scores.sqlite", "tiny/logs/02_baselines.attempts.jsonl"])
def test_a_damaged_file_is_told_with_its_path(folder: Path, file: str) -> None:
    path = folder.parent / file
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("mine")
    else:
        path.write_bytes(b"2026-11-23T10:00:00Z \xe2\x96\xa0 began {\xff}\n" * 100)
    done = status()
    assert done.returncode == 1
    assert str(path) in done.stderr
    assert "away" in done.stderr
    assert "Traceback" not in done.stderr
