"""Leftovers of killed processes are recognised by their names, and those of running ones are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emlib.core import paths, temporary
from emlib.core.files import whole_file, whole_folder

WRITER = """
import sys
from pathlib import Path
from emlib.core.files import whole_file, whole_folder
from emlib.core.temporary import temporary_folder
here = Path(sys.argv[1])
with (whole_file(here / "a" / "05_kl.ipynb") as file, whole_folder(here / "report") as report,
      temporary_folder() as other):
    file.write_text("half")
    (report / "half.html").write_text("half")
    (other / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def start(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env=os.environ | {
                                   "PYTHONPATH": str(paths.ROOT), "TMPDIR": str(folder)})
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.name not in ("a", "half", "half.html", temporary.OWNER)}


def test_what_a_killed_process_wrote_is_removed_and_nothing_of_a_running_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".05_kl.ipynb").write_text("mine")  # a hidden file without a mark
    with start(tmp_path) as killed, start(tmp_path) as running:
        assert len(names(tmp_path)) == 7
        killed.kill()
        killed.wait()
        assert len(temporary.sweep(tmp_path, deep=False)) == 1  # the report
        assert len(temporary.sweep(tmp_path)) == 1
        assert len(names(tmp_path)) == 5
        assert temporary.sweep(tmp_path) == []
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with temporary.temporary_folder() as folder:
            assert len([path for path in tmp_path.iterdir() if path.name.startswith(temporary.FOLDERS)]) == 2
        assert not folder.exists()
        running.communicate("go\n")
    assert names(tmp_path) == {".05_kl.ipynb", "05_kl.ipynb", "report"}


def test_a_folder_that_was_being_replaced_returns_to_its_place(tmp_path: Path) -> None:
    """Killed between the two renames, of which the first took the former report away."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("former")
    code = ("import os, sys; from pathlib import Path; from emlib.core.temporary import FORMER, named; "
            "p = Path(sys.argv[1]); os.replace(p, named(p, FORMER))")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "report")], check=True,
                   env=os.environ | {"PYTHONPATH": str(paths.ROOT)})
    assert not (tmp_path / "report").exists()
    temporary.sweep(tmp_path)
    assert (tmp_path / "report" / "index.html").read_text() == "former"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_of_another_machine_is_left_and_one_from_before_the_last_boot_is_not(tmp_path: Path) -> None:
    name = temporary.named(tmp_path / "a.ipynb").name
    machine, boot, pid, start_, _ = temporary.MARK.search(name)[1].split("-")  # type: ignore[index]
    assert not temporary.is_left(name)  # this process runs
    assert temporary.is_left(name.replace(f"-{pid}-{start_}-", f"-{pid}-{int(start_) + 1}-"))  # the id was used again
    assert temporary.is_left(name.replace(boot, "0" * 6))
    assert not temporary.is_left(name.replace(machine, "0" * 6).replace(boot, "0" * 6))
    assert len({temporary.named(tmp_path / "a.ipynb") for _ in range(20)}) == 20
    assert name.endswith(".ipynb")
    assert len(temporary.named(tmp_path / ("ü" * 120 + ".ipynb")).name.encode()) < 255


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a.txt") as file:
        file.write_text(str(1 / 0))
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "a") as folder:
        (folder / "a.txt").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []
