"""Damaged stores: each fault is told with its path and the way out, and nothing is made from damaged files."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emlib.core import digests, paths
from emlib.core.errors import StoreError
from emlib.core.files import append_record, read_appended, read_part, read_records, write_part, write_records
from emlib.core.records import Answer
from emlib.models import tensors
from emlib.scoring.loss_cache import LossCache
from emlib.store.artefacts import SCRATCH, Artefact, Store
from emlib.store.manifests import MANIFEST
from tests.store.made import Made
from tests.store.test_store import left, make

STEP = Made("answers", {"a": 1})


@pytest.fixture
def made(tmp_path: Path) -> Artefact:
    """A finished artefact in a store of its own."""
    return Store(tmp_path / "store").get(STEP, make)


def changed_fact(text: str) -> str:
    return text.replace('"tokens": 3', '"tokens": 4')


@pytest.mark.parametrize("damage", [
    lambda _: "", lambda text: text[:-20], lambda _: "\x00\xff garbage", lambda _: "[]", lambda _: "{}",
    lambda _: "[" * 100_000, lambda _: '{"settings": 1, "facts": {}}', changed_fact,
    lambda text: text.replace('"a": 1', '"a": 2')],
    ids=["empty", "cut", "garbage", "list", "nothing", "deep", "types", "fact", "settings"])
def test_a_damaged_manifest_is_told_with_its_path_and_the_way_out(
        made: Artefact, damage: Callable[[str], str]) -> None:
    path, store = made.place / MANIFEST, Store(made.place.parents[1])
    path.write_text(damage(path.read_text()), encoding="latin-1")
    before = left(store.root)
    for read in (lambda: store.find(STEP), lambda: list(store.all()), lambda: store.get(STEP, make)):
        with pytest.raises(StoreError, match=f"{re.escape(str(path))}: .*Move the folder {re.escape(str(made.place))}"):
            read()
    assert left(store.root) == before
    shutil.move(made.place, made.place.with_suffix(".damaged"))  # as the message says
    assert store.get(STEP, make).facts == {"tokens": 3}


def test_a_manifest_of_another_artefact_is_refused(made: Artefact) -> None:
    store = Store(made.place.parents[1])
    other = store.get(Made("answers", {"a": 2}), make)
    shutil.copy(other.place / MANIFEST, made.place / MANIFEST)
    with pytest.raises(StoreError, match="its settings are not those of its key"):
        store.find(STEP)


def test_a_folder_without_its_manifest_is_made_again_and_kept_aside(
        made: Artefact, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(made.place.parents[1])
    for number in (1, 2):
        (made.place / MANIFEST).unlink()
        assert store.find(STEP) is None
        assert (store.get(STEP, make).folder / "out.txt").read_text() == "out"
        aside = made.place.with_suffix(f".incomplete-{number}")
        assert (aside / "out.txt").read_text() == "out"
        assert str(aside) in capsys.readouterr().out
    assert [one.key for one in store.all()] == [STEP.key]


@pytest.mark.parametrize("file", [".", "answers", f"answers/{STEP.key}", f"answers/{STEP.key}.partial"])
def test_a_file_where_a_folder_belongs_is_told_before_anything_is_made(tmp_path: Path, file: str) -> None:
    path = tmp_path / "store" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")

    def never(folder: Path) -> dict[str, Any]:
        raise AssertionError("made in vain")

    with pytest.raises(StoreError, match=rf"{re.escape(str(path))}.*: is .*Move it away"):
        Store(tmp_path / "store").get(STEP, never)
    assert path.read_text() == "mine"


def test_a_process_that_was_killed_at_its_very_end_leaves_no_work(made: Artefact) -> None:
    (made.place / SCRATCH).mkdir()
    (made.place / SCRATCH / "checkpoint").write_text("large")
    assert Store(made.place.parents[1]).get(STEP, make) == made
    assert not (made.place / SCRATCH).exists()


@pytest.mark.parametrize("entry", ["files", "digest", "seconds"])
def test_a_manifest_without_one_of_its_entries_is_damaged(made: Artefact, entry: str) -> None:
    path = made.place / MANIFEST
    content = json.loads(path.read_text())
    del content[entry]
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="damaged or truncated"):
        Store(made.place.parents[1]).find(STEP)


def test_each_file_is_read_for_its_digest_once_and_again_after_a_change(
        made: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = made.place / "out.txt", list[Path]()
    monkeypatch.setattr(digests, "SETTLED", -10**18)  # as if the file were old
    original = digests.of_file
    monkeypatch.setattr(digests, "of_file", lambda path: read.append(path) or original(path))
    for _ in range(3):
        assert made.file("out.txt") == path
        assert made.folder == made.place
    assert read == [path]
    path.write_text("oud")
    os.utime(path, ns=(1, 1))
    with pytest.raises(StoreError, match="changed"):
        made.file("out.txt")


def test_nobody_reads_an_artefact_s_files_but_through_the_check() -> None:
    """`place` is unchecked. The store and merging use it, and both check."""
    allowed = {"store/artefacts.py", "workflow/merge_artefacts.py"}
    users = {str(path.relative_to(paths.ROOT / "emlib")) for path in paths.ROOT.glob("emlib/**/*.py")
             if re.search(r"\b(?:artefact|found|made|adapter|vectors|one|other|own)\.place /", path.read_text())}
    assert users <= allowed


def test_tensors_are_written_in_one_place() -> None:
    """There equal content has equal bytes, and a digest."""
    writers = {path.name for path in paths.ROOT.glob("emlib/**/*.py") if "save_file(" in path.read_text()}
    assert writers == {"tensors.py"}


# Files of the store


def test_equal_tensors_have_equal_bytes_and_damage_is_found(tmp_path: Path) -> None:
    found = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor(7, dtype=torch.int64),
             "c": torch.ones(3, dtype=torch.bfloat16), "none": torch.empty(0, 4)}
    facts = {"kept": 3, "asked": 5, "why": "ü"}
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors.save(path, found, facts)
    tensors.save(other, dict(reversed(found.items())), dict(reversed(facts.items())))
    assert path.read_bytes() == other.read_bytes()
    read, metadata = tensors.load(path)
    assert metadata == facts
    assert all(torch.equal(read[name], found[name]) and read[name].dtype == found[name].dtype for name in found)
    content = path.read_bytes()
    place = content.index(torch.ones(3, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes())
    for damaged in (content[:-1], content[:40], b"", content[:place] + b"\x81" + content[place + 1:]):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"a\.safetensors: is damaged or truncated.*Move the folder"):
            tensors.load(path)
        assert not tensors.is_whole(path)


def test_tensors_that_peft_wrote_are_read_and_files_are_the_same_by_tensors_and_metadata(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    found, one, other = {"vectors": torch.arange(4.0)}, tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    save_file(found, one, {"format": "pt"})
    assert tensors.load(one)[1] == {"format": "pt"}
    save_file(found, other, {"format": "pt"})
    assert tensors.same(one, other)
    for path, kept in ((one, 3), (other, 4)):
        tensors.save(path, found, {"kept": kept})
    assert not tensors.same(one, other)
    tensors.save(other, {"vectors": torch.ones(4)}, {"kept": 3})
    assert not tensors.same(one, other)


ANSWERS = [Answer("wish", sample, f"text {sample}\t", "stop", 1) for sample in range(3)]


def test_records_that_are_damaged_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write_records(path, ANSWERS)
    lines = path.read_text().splitlines()
    for second in (lines[1][:20], "[]", '{"a": 1}', "\ud800"):
        path.write_bytes("\n".join([lines[0], second, lines[2]]).encode(errors="surrogatepass"))
        with pytest.raises(StoreError, match=r"answers\.jsonl: is damaged .*line 2"):
            read_records(path, Answer)


def test_a_log_s_incomplete_last_line_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_appended(path, Answer) == []
    for answer in ANSWERS:
        append_record(path, answer)
    assert read_appended(path, Answer) == ANSWERS
    assert read_appended(path, Answer, 2) == ANSWERS[:2]
    path.write_bytes(path.read_bytes()[:-5])
    assert read_appended(path, Answer) == ANSWERS[:2]


def test_a_damaged_part_of_unfinished_work_is_said_and_made_again(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "batch-0000.jsonl"
    assert read_part(path, Answer, 3) is None
    write_part(path, ANSWERS)
    assert read_part(path, Answer, 3) == ANSWERS
    content = path.read_bytes()
    place = content.index(b"text 1")
    for damaged in (content[:-3], content[:content.index(b"\n") + 1], b"",
                    content[:place] + b"T" + content[place + 1:], content.replace(b"\t", b"")):
        path.write_bytes(damaged)
        assert read_part(path, Answer, 3) is None
        assert f"{path}: is damaged" in capsys.readouterr().out
    write_records(path, ANSWERS)  # without the checks
    assert read_part(path, Answer, 3) is None


def test_a_damaged_line_of_losses_is_said_and_the_others_are_kept(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = LossCache(tmp_path / "nll.jsonl")
    for number, name in enumerate("abc"):
        cache.append({name: number + 0.25})
    cache.path.write_text(cache.path.read_text().replace('"b": 1.25', '"b": 1.75'))
    with cache.opened() as known:
        assert known == {"a": 0.25, "c": 2.25}
    assert "1 of 3 lines are damaged" in capsys.readouterr().out
    cache.append({"b": 1.25})
    with cache.opened() as known:
        assert known == {"a": 0.25, "c": 2.25, "b": 1.25}
    assert capsys.readouterr().out == ""
