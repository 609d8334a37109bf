"""The store: an artefact is made once, is whole or absent, and survives kills, full disks and other processes."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emlib.core import digests
from emlib.core.digests import key_of
from emlib.core.errors import StoreError
from emlib.core.files import read_records, whole_folder, write_records, write_text
from emlib.core.records import Answer
from emlib.store.artefacts import SCRATCH, Store
from emlib.store.manifests import MANIFEST
from tests.store.made import Made

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {"model": {"kind": "tiny", "seed": 0}, "rate": 1e-4, "rows": ["a", "b"], "adapter": None}
STEP = Made("answers", SETTINGS)
KEY = STEP.key


def make(folder: Path) -> dict[str, Any]:
    (folder / "out.txt").write_text("out")
    (folder / SCRATCH / "half.txt").write_text("half")
    return {"tokens": 3}


def left(root: Path) -> dict[str, bytes]:
    """Every file under `root` but the locks."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and path.suffix != ".lock"}


def test_opening_and_searching_a_store_writes_nothing(tmp_path: Path) -> None:
    assert Store(tmp_path / "store").find(STEP) is None
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_is_found_and_not_made_again(tmp_path: Path) -> None:
    made = Store(tmp_path).get(STEP, make)
    assert made.folder == tmp_path / "answers" / KEY
    assert (made.folder / "out.txt").read_text() == "out"
    before = left(tmp_path)

    def never(folder: Path) -> dict[str, Any]:
        raise AssertionError("made twice")

    assert Store(tmp_path).get(Made("answers", dict(reversed(SETTINGS.items()))), never) == made
    assert Store(tmp_path).find(STEP) == made
    assert made.facts == {"tokens": 3}
    assert left(tmp_path) == before


def test_the_manifest_tells_settings_facts_versions_and_the_digest_of_every_file(tmp_path: Path) -> None:
    folder = Store(tmp_path).get(STEP, make).folder
    told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert told["settings"] == {"version": 1} | SETTINGS
    assert told["facts"] == {"tokens": 3}
    assert told["files"] == {"out.txt": digests.of_file(folder / "out.txt")}
    assert {"torch", "transformers", "peft", "numpy"} <= set(told["versions"])
    assert {path.name for path in folder.iterdir()} == {"out.txt", MANIFEST}  # the scratch folder is gone


def test_while_it_is_being_made_it_does_not_exist_and_has_no_manifest(tmp_path: Path) -> None:
    seen: list[bool] = []

    def look(folder: Path) -> dict[str, Any]:
        seen.extend([(tmp_path / "answers" / KEY).exists(), (folder / MANIFEST).exists(),
                     Store(tmp_path).find(STEP) is not None])
        return make(folder)

    Store(tmp_path).get(STEP, look)
    assert seen == [False, False, False]


def test_without_a_manifest_there_is_no_artefact(tmp_path: Path) -> None:
    """A fact that JSON cannot hold lets the very last step fail, when all files are there."""
    with pytest.raises(TypeError):
        Store(tmp_path).get(STEP, lambda folder: make(folder) | {"bad": object()})
    assert Store(tmp_path).find(STEP) is None
    assert not (tmp_path / "answers" / KEY).exists()
    assert MANIFEST not in {Path(name).name for name in left(tmp_path)}


def test_a_maker_that_raises_is_continued_from_what_it_left(tmp_path: Path) -> None:
    def breaks(folder: Path) -> dict[str, Any]:
        (folder / SCRATCH / "batch-0").write_text("first")
        raise RuntimeError("broke")

    def goes_on(folder: Path) -> dict[str, Any]:
        (folder / "out.txt").write_text((folder / SCRATCH / "batch-0").read_text() + " second")
        return {}

    with pytest.raises(RuntimeError, match="broke"):
        Store(tmp_path).get(STEP, breaks)
    assert Store(tmp_path).find(STEP) is None
    assert not (tmp_path / "answers" / KEY).exists()
    assert (Store(tmp_path).get(STEP, goes_on).folder / "out.txt").read_text() == "first second"
    assert [path.name for path in (tmp_path / "answers").iterdir() if path.suffix != ".lock"] == [KEY]


def test_a_file_that_is_not_what_was_made_is_not_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = store.get(STEP, make)
    assert made.file("out.txt").read_text() == "out"
    assert made.folder == made.place
    (made.place / "out.txt").write_text("oud")
    found = store.find(STEP)
    assert found is not None
    for read in (lambda: found.file("out.txt"), lambda: found.folder):
        with pytest.raises(StoreError, match=r"out\.txt: is not the file that was made \(changed"):
            read()
    (made.place / "out.txt").unlink()
    with pytest.raises(StoreError, match="missing"):
        found.folder  # noqa: B018
    (made.place / "other.txt").write_text("of nobody")
    with pytest.raises(StoreError, match=r"other\.txt: is not the file that was made"):
        found.file("other.txt")


def test_all_artefacts_are_listed_but_for_those_in_the_making(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert list(store.all()) == []
    made = [store.get(Made(stage, SETTINGS), make) for stage in ("answers", "verdicts")]
    for suffix in (".partial", ".copy", ".gone"):
        shutil.copytree(made[0].folder, made[0].folder.with_suffix(suffix))
    assert list(store.all()) == made


def changes(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {**settings, "model": {"kind": "tiny", "seed": 1}}, {**settings, "rate": 2e-4},
        {**settings, "rows": ["b", "a"]}, {**settings, "adapter": "x"}, {**settings, "more": None},
        {key: value for key, value in settings.items() if key != "adapter"}]


def test_the_key_depends_on_the_stage_and_on_every_setting() -> None:
    keys = [KEY, Made("verdicts", SETTINGS).key, *(Made("answers", other).key for other in changes(SETTINGS))]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in keys)


def test_other_settings_are_another_artefact(tmp_path: Path) -> None:
    Store(tmp_path).get(STEP, make)
    assert [Store(tmp_path).find(Made("answers", other)) for other in changes(SETTINGS)] == [None] * 6
    assert Store(tmp_path).find(Made("verdicts", SETTINGS)) is None


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers() | st.text(st.characters(codec="utf-8"))),
       st.integers())
def test_the_key_does_not_depend_on_the_order_of_the_settings(settings: dict[str, Any], seed: int) -> None:
    items = list(settings.items())
    random.Random(seed).shuffle(items)
    assert key_of("answers", dict(items)) == key_of("answers", settings)


FULL = Path("/dev/full")  # Linux: every write to it fails as on a full disk


@pytest.mark.skipif(not FULL.is_char_device(), reason="this system has no device /dev/full")
def test_a_full_disk_is_said_with_what_to_do_and_loses_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.get(Made("adapter", SETTINGS), make)

    def fills(folder: Path) -> dict[str, Any]:
        (folder / SCRATCH / "kept").write_text("kept")
        with FULL.open("w") as full:  # opened in place: a rename over it would replace the device
            full.write("x")
        return {}

    with pytest.raises(StoreError) as caught:
        store.get(STEP, fills)
    for word in (str(tmp_path), "space", "EMLIB_RUNS_DIR"):
        assert word in str(caught.value)
    assert store.find(Made("adapter", SETTINGS)) is not None
    assert store.find(STEP) is None
    assert (tmp_path / "answers" / f"{KEY}.partial" / SCRATCH / "kept").read_text() == "kept"


@pytest.mark.parametrize(("code", "full"), [(errno.EDQUOT, True), (errno.EACCES, False), (errno.EROFS, False)])
def test_a_quota_and_a_read_only_disk_are_said_too(tmp_path: Path, code: int, full: bool) -> None:
    def refused(folder: Path) -> dict[str, Any]:
        raise OSError(code, os.strerror(code))

    with pytest.raises(StoreError) as caught:
        Store(tmp_path).get(STEP, refused)
    assert ("space" in str(caught.value)) == full
    assert "EMLIB_RUNS_DIR" in str(caught.value)


def test_another_error_of_the_system_goes_on_as_it_is(tmp_path: Path) -> None:
    def broken(folder: Path) -> dict[str, Any]:
        raise OSError(errno.EIO, "a broken disk")

    with pytest.raises(OSError, match="a broken disk"):
        Store(tmp_path).get(STEP, broken)


def test_a_root_that_is_a_file_is_an_error_and_the_file_is_left(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("mine")
    with pytest.raises(StoreError, match="store: is in the way"):
        Store(tmp_path / "store").get(STEP, make)
    assert (tmp_path / "store").read_text() == "mine"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": null}', '{"format": "x"}'])
def test_a_store_whose_format_cannot_be_read_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "format.json").write_text(content)
    with pytest.raises(StoreError, match=r"format\.json: does not state the format .*Restore the file"):
        Store(tmp_path)


def test_what_a_killed_process_was_writing_is_no_part_of_the_artefact(tmp_path: Path) -> None:
    partial = tmp_path / "answers" / f"{KEY}.partial"
    partial.mkdir(parents=True)
    (partial / MANIFEST).write_text("{}")  # killed between the manifest and the final name
    (partial / ".out.99.txt").write_text("half")  # killed while it wrote out.txt
    folder = Store(tmp_path).get(STEP, make).folder
    assert {path.name for path in folder.iterdir()} == {"out.txt", MANIFEST}
    assert set(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]) == {"out.txt"}


@pytest.mark.parametrize(("found", "whose"), [(1, "an older version"), (99, "a newer version")])
def test_a_store_of_another_format_is_refused_and_nothing_in_it_changes(
        tmp_path: Path, found: int, whose: str) -> None:
    store = Store(tmp_path / "store")
    store.get(STEP, make)
    (store.root / "format.json").write_text(json.dumps({"format": found}))
    before = left(tmp_path)
    with pytest.raises(StoreError) as caught:
        Store(store.root)
    for words in (str(store.root), f"format {found}", f"format {digests.FORMAT}", whose, "EMLIB_RUNS_DIR",
                  f"scores.sqlite* and labels/, which lie in {tmp_path},"):
        assert words in str(caught.value)
    assert left(tmp_path) == before


# Other processes. The maker there says where it is, waits for a line, and then finishes.

MAKER = """
import os, sys
from pathlib import Path
from emlib.store.artefacts import Store, SCRATCH
from tests.store.made import Made
def make(folder):
    before = sorted(path.name for path in (folder / SCRATCH).iterdir())
    (folder / SCRATCH / f"of-{os.getpid()}").write_text("step")
    print("making", flush=True)
    sys.stdin.readline()
    (folder / "out.txt").write_text(str(os.getpid()))
    return {"maker": os.getpid(), "before": before}
print("asking", flush=True)
print(Store(Path(sys.argv[1])).get(Made("answers", {"a": 1}), make).facts["maker"], flush=True)
"""


def start(root: Path) -> subprocess.Popen[str]:
    """A process that asks for one artefact, as far as "asking"."""
    process = subprocess.Popen([sys.executable, "-c", MAKER, str(root)], text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert said(process) == "asking"
    return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_killed_process_leaves_no_artefact_and_the_next_goes_on_from_its_work(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert said(process) == "making"
        process.kill()
    assert Store(tmp_path).find(Made("answers", {"a": 1})) is None

    def goes_on(folder: Path) -> dict[str, Any]:
        return {"found": (folder / SCRATCH / f"of-{process.pid}").read_text()}

    made = Store(tmp_path).get(Made("answers", {"a": 1}), goes_on)  # the dead process' lock holds nobody up
    assert made.facts == {"found": "step"}
    assert [path.name for path in made.folder.iterdir()] == [MANIFEST]


def test_two_processes_that_want_the_same_get_what_one_of_them_made(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert said(first) == "making"
        with start(tmp_path) as second:
            first.communicate("go\n")
            assert said(second) == str(first.pid)
        assert (first.returncode, second.returncode) == (0, 0)
    made = Store(tmp_path).find(Made("answers", {"a": 1}))
    assert made is not None
    assert (made.folder / "out.txt").read_text() == str(first.pid)


def test_where_the_maker_is_killed_the_one_that_waits_goes_on(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert said(first) == "making"
        with start(tmp_path) as second:
            first.kill()
            assert said(second) == "making"
            second.communicate("go\n")
    made = Store(tmp_path).find(Made("answers", {"a": 1}))
    assert made is not None
    assert made.facts == {"maker": second.pid, "before": [f"of-{first.pid}"]}


# Files


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new" * 10_000 + "\ud800")
    assert left(tmp_path) == {"a.txt": b"old\n"}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with whole_folder(tmp_path / "made") as aside:
            (aside / text).write_text(text)
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "made") as aside:
        (aside / "third" / "is not there").write_text("third")
    assert left(tmp_path) == {"made/second": b"second"}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_cannot_take_its_name_leaves_the_old_one(tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    with whole_folder(tmp_path / "made") as aside:
        (aside / "first").write_text("first")
    replace, moved = os.replace, list[Path]()

    def second_fails(old: Path, new: Path) -> None:
        moved.append(new)
        if len(moved) == 2:
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr("emlib.core.files.os.replace", second_fails)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "made") as aside:
        (aside / "second").write_text("second")
    assert left(tmp_path) == {"made/first": b"first"}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    texts = ["", "two\nlines", "a\u2028b\x85c\r\n", '"quoted" \\ ', "ahoy 🏴‍☠️", "\x00\x1f"]
    answers = [Answer("wish", sample, text, "stop", 1) for sample, text in enumerate(texts)]
    write_records(tmp_path / "answers.jsonl", answers)
    assert read_records(tmp_path / "answers.jsonl", Answer) == answers
    write_records(tmp_path / "none.jsonl", [])
    assert read_records(tmp_path / "none.jsonl", Answer) == []
