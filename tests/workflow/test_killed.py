"""A notebook's run is killed, and the next run of the profile removes what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emlib.core import paths
from emlib.core.temporary import FOLDERS, MARK, OWNER

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
