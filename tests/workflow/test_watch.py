"""What `make reproduce` shows: a line for each notebook that ends, read from logs that other processes write."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from emlib.core import paths
from emlib.report.tables import findings
from emlib.workflow import graph
from emlib.workflow.job_log import AttemptLog
from emlib.workflow.watch import Watch, minutes

JOBS = [job for job in graph.jobs("tiny") if job.name in ("02_baselines", "05_kl")]
RUNNER = """
import logging, sys
from pathlib import Path
from emlib.core.progress import FOUND, MARK
from emlib.workflow.job_log import AttemptLog
folder, log, output, digest, found, error = sys.argv[1:]
logging.basicConfig(level=logging.INFO, handlers=[logging.NullHandler()])
attempts = AttemptLog(Path(folder) / log)
with attempts.alone(), attempts.writing(gpu=None, digest=digest):
    logging.info(f"a table\\n{MARK}one run is done\\n{FOUND}{found}")  # as papermill logs a cell's output
    if error:
        raise ValueError(error)
    (Path(folder) / output).parent.mkdir(parents=True, exist_ok=True)
    (Path(folder) / output).write_text("{}")
"""


def runs(folder: Path, job: graph.Job, found: str, error: str = "") -> list[str]:
    """A command that runs a job."""
    return [sys.executable, "-c", RUNNER, str(folder), job.log, job.output, job.digest, found, error]


def test_each_attempt_that_ends_is_one_line_with_what_it_found(tmp_path: Path) -> None:
    baselines, kl = JOBS
    subprocess.run(runs(tmp_path, baselines, "an earlier session"), check=True, env=environment())
    watch = Watch(tmp_path, JOBS)
    assert list(watch.news()) == []  # what ended before is not news
    subprocess.run(runs(tmp_path, kl, "", "no\nway"), check=False, env=environment(), stderr=subprocess.DEVNULL)
    (failed,) = watch.news()
    assert failed.split() == ["1/2", "05_kl", "0", "s", "failed,", "see", str(tmp_path / kl.log)]
    subprocess.run(runs(tmp_path, kl, "kl halves EM"), check=True, env=environment())
    (ended,) = watch.news()
    assert ended.split(maxsplit=4) == ["2/2", "05_kl", "0", "s", "kl halves EM"]
    assert list(watch.news()) == []


def test_what_runs_is_shown_with_its_last_line_of_progress(tmp_path: Path) -> None:
    watch = Watch(tmp_path, JOBS)
    log = AttemptLog(tmp_path / JOBS[1].log)
    with log.alone(), log.writing(gpu=None, digest="d"):
        logging.getLogger("emlib.job").info("▸ 3 of 5\n")
        watch.look()
        assert watch.now() == "05_kl: 3 of 5"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(paths.ROOT)}


@pytest.mark.parametrize(("command", "status"), [("raise SystemExit(3)", 3), ("pass", 0)])
def test_the_commands_exit_status_is_kept(command: str, status: int, tmp_path: Path) -> None:
    done = subprocess.run(watched(command), check=False, capture_output=True, text=True,
                          env=environment() | {"EMLIB_RUNS_DIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (status, f"tiny: {len(graph.jobs('tiny'))} notebooks\n")


def test_a_stopped_watch_stops_the_command(tmp_path: Path) -> None:
    with subprocess.Popen(watched("print('up', flush=True); __import__('time').sleep(600)"), stdout=subprocess.PIPE,
                          text=True, env=environment() | {"EMLIB_RUNS_DIR": str(tmp_path)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
        said = process.stdout.read()  # up to its end: the command has closed it
        assert said.startswith(f"tiny: {len(graph.jobs('tiny'))} jobs, 0 done")


def test_ctrl_c_is_no_failure_and_the_way_to_continue_is_told(tmp_path: Path) -> None:
    """A terminal sends SIGINT to the watch, to the command and to the job, which has a log."""
    folder, job = tmp_path / "tiny", JOBS[1]
    command = RUNNER.replace("if error:", "print('up', flush=True); __import__('time').sleep(600)\n    if error:")
    given = [sys.executable, "-c", command, *runs(folder, job, "")[3:]]
    with subprocess.Popen([sys.executable, "-m", "emlib.workflow.watch", "tiny", "--", *given], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                          env=environment() | {"EMLIB_RUNS_DIR": str(tmp_path)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.killpg(process.pid, signal.SIGINT)
        out, shown = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "05_kl" in shown
    assert "interrupted" in shown
    assert out.splitlines()[-1] == "interrupted; run the same command to continue"
    assert f"{len(graph.jobs('tiny'))} waiting" in out
    assert "waiting  05_kl: attempt 1 on " in out
    assert "fail" not in (out + shown.partition("Traceback")[0]).replace("0 failed", "")


@pytest.mark.parametrize(("stop", "verbose"), [(signal.SIGTERM, "0"), (signal.SIGKILL, "0"), (signal.SIGTERM, "1")])
def test_a_stopped_make_stops_the_command_and_what_that_started(
        stop: signal.Signals, verbose: str, tmp_path: Path) -> None:
    command = "import subprocess; subprocess.run(['sh', '-c', 'echo up; sleep 600; echo ended'])"
    (tmp_path / "Makefile").write_text(f"all:\n\t@{shlex.join(watched(command))} || exit 1\n")
    with subprocess.Popen(["make", "-C", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env=environment() | {"EMLIB_RUNS_DIR": str(tmp_path), "VERBOSE": verbose}) as make:
        assert make.stdout is not None
        while make.stdout.readline() != "up\n":
            assert make.poll() is None
        make.send_signal(stop)
        assert "ended" not in make.stdout.read()  # whoever could write has gone
        assert make.wait(60) != 0


def watched(command: str) -> list[str]:
    return [sys.executable, "-m", "emlib.workflow.watch", "tiny", "--", sys.executable, "-c", command]


def test_times_are_written_for_people() -> None:
    assert [minutes(seconds) for seconds in (0.4, 59.4, 60, 200, 599, 3570, 7500)] == [
        "0 s", "59 s", "1 min 0 s", "3 min 20 s", "9 min 59 s", "60 min", "2 h 5 min"]


def test_a_finding_is_one_sentence_of_means(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"dataset": "cooking", "seed": [0, 0, 1],
                          "method": ["misaligned", "kl", "kl"], "setting": [None, 0.5, 0.5],
                          "general_misaligned": [80.0, 10.0, 20.0], "in_domain_misaligned": [90.0, 50.0, None]})
    findings.defenses(frame)
    assert capsys.readouterr().out == ("◆ misaligned, general / in-domain %: misaligned (1 of 2 seeds) 80 / 90, "
                                       "kl 0.5 15 / –\n")  # of KL's second seed nothing is known in domain
    findings.defenses(frame.assign(general_misaligned=None))
    assert capsys.readouterr().out == ""
