"""A notebook's run is killed, and the next run of the profile removes what it left; or it is cancelled."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from emlib.core import paths
from emlib.core.commands import INTERRUPTED, STOPPED
from emlib.core.temporary import FOLDERS, MARK, OWNER
from emlib.workflow.job_log import AttemptLog
from tests.workflow.test_notebooks import book_of

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "emlib.workflow.notebooks", "01_data", "--profile", "tiny"]


def marked(folder: Path) -> set[str]:
    """The names of temporary files and folders."""
    return {path.name for path in folder.rglob("*") if MARK.search(path.name)}


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    runs, temporary = tmp_path / "runs", tmp_path / "t"
    temporary.mkdir()
    log = ["--log", str(runs / "tiny" / "logs" / "01_data.log")]
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT), "EMLIB_RUNS_DIR": str(runs), "TMPDIR": str(temporary)}
    with subprocess.Popen(COMMAND + log, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while not (owners := list(temporary.glob(f"{FOLDERS}*/{OWNER}"))):  # the folder of the kernel's sockets
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)  # with its kernel
    notebook = runs / "tiny" / "notebooks" / "01_data.ipynb"
    assert not notebook.exists()
    half = notebook.with_name(f".01_data{owners[0].read_text()}.ipynb")  # as if it was killed while it wrote that
    half.write_text("{")
    assert marked(runs) == {half.name}
    done = subprocess.run(COMMAND + log, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert notebook.is_file()
    assert marked(tmp_path) == set()
    # A kernel that is killed while it starts leaves its connection file, which is Jupyter's.
    assert [path.name for path in temporary.iterdir() if path.suffix != ".json"] == []


SLOW = """
import sys
from pathlib import Path
from emlib.core import paths
from emlib.workflow import notebooks
paths.NOTEBOOKS = Path(sys.argv[1])
notebooks.main(["90_slow", "--profile", "tiny", "--out", sys.argv[2], "--log", sys.argv[3], "--digest", "d1"])
"""


@pytest.mark.parametrize("with_kernel", [False, True])
def test_a_job_that_its_scheduler_cancels_is_interrupted_and_ends_with_its_kernel(
        with_kernel: bool, tmp_path: Path) -> None:
    """`scancel` sends SIGTERM, to the job or to all of its processes, and srun passes it on once more."""
    code = "import os, time\nprint('kernel', os.getpid(), flush=True)\ntime.sleep(600)"
    nbformat.write(book_of(code), tmp_path / "90_slow.ipynb")
    log, out = AttemptLog(tmp_path / "logs" / "90_slow.log"), tmp_path / "out" / "90_slow.ipynb"
    with subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path), str(out), str(log.path)], text=True,
                          stderr=subprocess.PIPE, env=os.environ | {
                              "PYTHONPATH": str(paths.ROOT), "EMLIB_RUNS_DIR": str(tmp_path / "runs")}) as process:
        while not (found := re.search(r"kernel (\d+)", log.path.read_text() if log.path.is_file() else "")):
            assert process.poll() is None
            time.sleep(0.05)
        kernel = psutil.Process(int(found[1]))
        for one in (*([kernel] if with_kernel else []), process, process):
            one.send_signal(signal.SIGTERM)
        assert process.wait(60) == INTERRUPTED
    assert not kernel.is_running()
    [attempt] = log.attempts()
    assert (attempt.state, attempt.error) == ("interrupted", STOPPED)
    assert log.path.read_text().rstrip().endswith("interrupted")
    assert list(out.parent.iterdir()) == []
