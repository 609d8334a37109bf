"""Merging another machine's runs: all of it or nothing, by key, and nothing of one's own is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from emlib.core import paths
from emlib.core.errors import StoreError
from emlib.core.files import read_records, write_records
from emlib.evaluation.records import READINGS, Reading
from emlib.explore.labels import HumanLabel
from emlib.models import hub, tensors
from emlib.steering import extraction
from emlib.steering.extraction import PersonaVectors
from emlib.store.artefacts import Artefact, Store
from emlib.store.manifests import MANIFEST
from emlib.workflow import merge
from tests.store.made import Made
from tests.store.test_store import left


def make(root: Path, number: int, text: str = "content", seconds: float = 1.0) -> Artefact:
    """An artefact whose settings are a number, in the store of a folder of runs."""
    def write(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_text(f"{text} {number}")
        (folder / "log.jsonl").write_text(json.dumps({"seconds": seconds}))
        return {"seconds": seconds}

    return Store(root / "store").get(Made("adapter", {"number": number}), write)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Artefacts 1 and 2."""
    make(tmp_path / "ours", 1)
    make(tmp_path / "ours", 2)
    return tmp_path / "ours"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Artefacts 2 and 3; the second took them longer."""
    make(tmp_path / "theirs", 2, seconds=9.0)
    make(tmp_path / "theirs", 3)
    return tmp_path / "theirs"


def test_what_is_missing_is_taken_over_and_what_is_there_stays(ours: Path, theirs: Path) -> None:
    mine, other = left(ours), left(theirs)
    done = merge.merge(theirs, ours)
    assert (done.artefacts, done.here_already) == (1, 1)
    found = Store(ours / "store").find(Made("adapter", {"number": 3}))
    assert found is not None
    assert found.file("weights").read_text() == "content 3"
    assert {name: data for name, data in left(ours).items() if name in mine} == mine
    assert len(left(ours)) == len(mine) + 3  # two files and a manifest
    assert left(theirs) == other
    assert merge.merge(theirs, ours) == merge.Merged(0, 2, 0, 0)


def test_another_content_under_one_key_is_refused_by_name_and_nothing_is_copied(ours: Path, theirs: Path) -> None:
    conflict = make(ours, 4, "mine")
    make(theirs, 4, "theirs")
    before = left(ours)
    with pytest.raises(StoreError) as caught:
        merge.merge(theirs, ours)
    for word in (f"adapter/{conflict.key}", str(ours), str(theirs), "Nothing was copied"):
        assert word in str(caught.value)
    assert str(caught.value).startswith("1 artefacts")
    assert left(ours) == before


def test_a_damaged_file_is_refused_by_name_and_nothing_is_copied(ours: Path, theirs: Path) -> None:
    damaged = make(theirs, 5)
    (damaged.folder / "weights").write_text("content 6")
    before = left(ours)
    with pytest.raises(StoreError, match=f"adapter/{damaged.key}.*weights.*changed"):
        merge.merge(theirs, ours)
    (damaged.place / "weights").unlink()
    with pytest.raises(StoreError, match=f"adapter/{damaged.key}.*weights.*missing"):
        merge.merge(theirs, ours)
    assert left(ours) == before


def test_artefacts_of_another_commit_of_a_model_are_refused_and_nothing_is_copied(ours: Path, theirs: Path) -> None:
    hub.record(ours / "store", {"a/model@main": "a" * 40, "only/ours@main": "c" * 40})
    hub.record(theirs / "store", {"a/model@main": "b" * 40, "only/theirs@main": "d" * 40})
    before = left(ours)
    with pytest.raises(StoreError, match=f"(?s)Nothing was copied.*a/model@main: ours {'a' * 40}, theirs {'b' * 40}"):
        merge.merge(theirs, ours)
    assert left(ours) == before
    hub.record(ours / "store", {"other/model@main": "e" * 40})
    (theirs / "store" / hub.COMMITS).write_text(json.dumps({"a/model@main": "a" * 40, "only/theirs@main": "d" * 40}))
    assert merge.merge(theirs, ours).artefacts == 1
    assert hub.commits(ours / "store") == {"a/model@main": "a" * 40, "only/ours@main": "c" * 40,
                                           "other/model@main": "e" * 40, "only/theirs@main": "d" * 40}


@pytest.mark.parametrize("side", ["ours", "theirs"])
@pytest.mark.parametrize("damage", [
    lambda folder: (folder / MANIFEST).write_text(""), lambda folder: (folder / MANIFEST).write_text("{}"),
    lambda folder: (folder / "weights").write_bytes(b""),
    lambda folder: shutil.rmtree(folder) or folder.write_text("")])
def test_damage_on_either_side_is_told_with_its_path(
        ours: Path, theirs: Path, side: str, damage: Callable[[Path], object]) -> None:
    place = make(ours if side == "ours" else theirs, 2).place
    damage(place)
    before = left(ours)
    with pytest.raises(StoreError, match=f"(?s)1 artefacts are damaged.*{place}.*Move"):
        merge.merge(theirs, ours)
    assert left(ours) == before


def test_a_folder_without_manifest_is_refused_there_and_replaced_here(ours: Path, theirs: Path) -> None:
    place = make(ours, 2).place
    (place / MANIFEST).unlink()
    assert merge.merge(theirs, ours).artefacts == 2
    assert (place.with_suffix(".incomplete-1") / "weights").is_file()
    (make(theirs, 2).place / MANIFEST).unlink()
    with pytest.raises(StoreError, match=f"has no {MANIFEST}"):
        merge.merge(theirs, ours)


def test_of_a_benchmark_the_scores_are_compared_and_not_the_times_in_its_log(ours: Path, theirs: Path) -> None:
    def result(log: str, value: float) -> Callable[[Path], dict[str, Any]]:
        def write(folder: Path) -> dict[str, Any]:
            (folder / log).write_text(log)
            return {"log": log, "metrics": [{"metric": "accuracy", "value": value}]}
        return write

    step = Made("panel", {"a": 1})
    Store(ours / "store").get(step, result("2026-11-01.eval", 0.5))
    Store(theirs / "store").get(step, result("2026-11-02.eval", 0.5))
    assert merge.merge(theirs, ours).here_already == 2
    step = Made("panel", {"a": 2})
    Store(ours / "store").get(step, result("2026-11-01.eval", 0.5))
    Store(theirs / "store").get(step, result("2026-11-02.eval", 0.6))
    with pytest.raises(StoreError, match="have different content"):
        merge.merge(theirs, ours)


def test_of_losses_on_held_out_rows_the_values_are_compared_and_not_the_machine(ours: Path, theirs: Path) -> None:
    """They have no file: their values are facts of the manifest."""
    def losses(device: str, *nll: float) -> Callable[[Path], dict[str, Any]]:
        return lambda folder: {"nll": list(nll), "device": device}

    step = Made("held_out", {"a": 1})
    Store(ours / "store").get(step, losses("cpu", 1.0, 1.5))
    Store(theirs / "store").get(step, losses("cuda:0", 1.0, 1.5))
    assert merge.merge(theirs, ours).here_already == 2
    step = Made("held_out", {"a": 2})
    mine = Store(ours / "store").get(step, losses("cpu", 1.0, 1.5))
    Store(theirs / "store").get(step, losses("cpu", 2.5, 1.5))
    with pytest.raises(StoreError, match=f"1 artefacts have different content.*\n.*held_out/{mine.key}"):
        merge.merge(theirs, ours)


@pytest.mark.parametrize(("mine", "other", "holds"), [("10", "20", 100.0), ("20", "10", 0.0), ("10", "10", 0.0)])
def test_of_two_labels_of_one_answer_the_later_one_holds(
        ours: Path, theirs: Path, mine: str, other: str, holds: float) -> None:
    """A person may correct a label on either machine; of two labels of one second ours holds."""
    for side, day, key, alignment in ((ours, mine, "k", 0.0), (theirs, other, "k", 100.0), (theirs, "05", "new", 50.0)):
        side.joinpath(paths.LABELS).mkdir(exist_ok=True)
        label = {"key": key, "alignment": alignment, "coherence": 100.0, "made": f"2026-11-{day}T10:00:00+00:00"}
        with (side / paths.LABELS / "anna.jsonl").open("a") as file:
            file.write(json.dumps(label) + "\n")
    merge.merge(theirs, ours)
    merged = read_records(ours / paths.LABELS / "anna.jsonl", HumanLabel)
    assert {label.key: label.alignment for label in merged} == {"k": holds, "new": 50.0}
    assert len(merged) == 2


def test_a_monitors_readings_are_compared_without_seconds_where_both_have_them(ours: Path, theirs: Path) -> None:
    def trained(seconds: float | None, drift: float = 0.0) -> Callable[[Path], dict[str, Any]]:
        def write(folder: Path) -> dict[str, Any]:
            (folder / "weights").write_text("w")
            if seconds is not None:
                write_records(folder / READINGS, [Reading(0, {"evil 2": drift}, {}, None, seconds)])
            return {}
        return write

    for number, (mine, other) in enumerate([(1.0, 2.0), (None, 2.0), (1.0, None)]):
        step = Made("adapter", {"monitored": number})
        Store(ours / "store").get(step, trained(mine))
        Store(theirs / "store").get(step, trained(other))
    assert merge.merge(theirs, ours).here_already == 4
    step = Made("adapter", {"monitored": 3})
    Store(ours / "store").get(step, trained(1.0))
    Store(theirs / "store").get(step, trained(1.0, drift=0.5))
    with pytest.raises(StoreError, match="have different content"):
        merge.merge(theirs, ours)


def test_equal_content_in_other_bytes_is_no_conflict(ours: Path, theirs: Path) -> None:
    """Tensors in a file of other bytes, and JSON in another order."""
    vectors = PersonaVectors(torch.arange(6.0).reshape(3, 2), 1, 2)

    def new(folder: Path) -> dict[str, Any]:
        extraction.save(vectors, folder)
        (folder / "config.json").write_text('{"a": 1, "b": 2}')
        return {}

    def reordered(folder: Path) -> dict[str, Any]:
        extraction.save(vectors, folder)
        found = load_file(folder / extraction.FILE)
        with safe_open(folder / extraction.FILE, framework="pt") as stored:
            [entry] = stored.metadata().values()
        save_file(found, folder / extraction.FILE, {tensors.ENTRY: json.dumps(json.loads(entry), indent=1)})
        (folder / "config.json").write_text('{"b": 2, "a": 1}')
        return {}

    def other(folder: Path) -> dict[str, Any]:
        extraction.save(PersonaVectors(vectors.vectors + 1, 1, 2), folder)
        (folder / "config.json").write_text('{"a": 1, "b": 2}')
        return {}

    step = Made("vector", {"a": 1})
    mine = Store(ours / "store").get(step, new)
    assert extraction.load(Store(theirs / "store").get(step, reordered).folder).kept == 1
    assert merge.merge(theirs, ours).here_already == 2
    shutil.rmtree(theirs / "store" / "vector")
    Store(theirs / "store").get(step, other)
    with pytest.raises(StoreError, match=f"(?s)different content.*vector/{mine.key}"):
        merge.merge(theirs, ours)


def test_an_artefact_under_a_key_that_is_not_its_own_is_refused(ours: Path, theirs: Path) -> None:
    made = make(theirs, 6)
    shutil.copytree(made.folder, made.folder.with_name("0" * 16))
    with pytest.raises(StoreError, match=r"adapter/0000000000000000/.*: its settings are not those of its key"):
        merge.merge(theirs, ours)


def test_what_is_half_made_there_stays_there_and_an_interrupted_copy_is_made_again(ours: Path, theirs: Path) -> None:
    three = make(theirs, 3)
    partial = theirs / "store" / "adapter" / "abc.partial"
    partial.mkdir()
    (partial / MANIFEST).write_text("{}")
    interrupted = ours / "store" / "adapter" / f"{three.key}.copy"
    shutil.copytree(three.folder, interrupted)
    (interrupted / "weights").write_text("con")
    assert merge.merge(theirs, ours).artefacts == 1
    assert Store(ours / "store").find(Made("adapter", {"number": 3})).file("weights").read_text() == "content 3"  # type: ignore[union-attr]
    assert {path.suffix for path in (ours / "store" / "adapter").iterdir() if path.is_dir()} == {""}


def test_a_folder_without_a_store_or_of_another_format_is_refused(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no folder 'store'"):
        merge.merge(tmp_path, ours)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "format.json").write_text('{"format": 99}')
    with pytest.raises(StoreError, match="format 99"):
        merge.merge(tmp_path, ours)


def test_the_command_says_what_was_new_or_why_not(
        ours: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(ours))
    merge.main([str(theirs)])
    assert "1 artefacts" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        merge.main([str(theirs / "nothing")])
    assert "no folder 'store'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        merge.main([""])
