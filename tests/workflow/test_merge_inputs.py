"""Merging what was made from an artefact that one side has removed: two trainings under one key are never mixed.

`make clean WHAT=adapters` removes adapters and keeps the answers. Another machine may have trained the same adapter to
other weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from emlib.core.errors import StoreError
from emlib.core.step import Step
from emlib.store import manifests
from emlib.store.artefacts import Artefact, Store
from emlib.store.manifests import DIGEST, MANIFEST
from emlib.workflow import merge
from tests.store.test_store import left


@dataclass(frozen=True)
class From(Step):
    """A step of any stage, made from other steps."""

    stage: str  # type: ignore[misc]
    name: str
    before: tuple[Step, ...] = ()

    @property
    def title(self) -> str:
        return self.name


ADAPTER = From("adapter", "adapter")
GENERAL, IN_DOMAIN = (From("answers", name, (ADAPTER,)) for name in ("general", "in domain"))
VERDICTS = From("verdicts", "on the in-domain answers", (IN_DOMAIN,))


def make(store: Store, step: Step, text: str, seconds: float = 1.0) -> Artefact:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "content").write_text(text)
        (folder / "log.jsonl").write_text(json.dumps({"seconds": seconds}))
        return {}

    return store.get(step, write)


def forget(store: Store, *steps: Step) -> None:
    """Write the manifests as earlier versions did, which state no contents of inputs."""
    for step in steps:
        folder = store.root / step.stage / step.key
        content = json.loads((folder / MANIFEST).read_text())
        manifests.write(folder, {name: value for name, value in content.items() if name not in (DIGEST, "made_from")})


@pytest.fixture
def ours(tmp_path: Path) -> Store:
    """An adapter, and its answers to general questions."""
    store = Store(tmp_path / "ours" / "store")
    make(store, ADAPTER, "weights")
    make(store, GENERAL, "from ours")
    return store


def trained(tmp_path: Path, weights: str) -> Store:
    """Another machine's adapter, its in-domain answers, and verdicts on them."""
    store = Store(tmp_path / "theirs" / "store")
    make(store, ADAPTER, weights, seconds=9.0)
    make(store, IN_DOMAIN, "from theirs")
    make(store, VERDICTS, "on theirs")
    return store


def merged(theirs: Store, ours: Store) -> merge.Merged:
    return merge.merge(theirs.root.parent, ours.root.parent)


def refused(theirs: Store, ours: Store, *words: str) -> None:
    before = left(ours.root)
    with pytest.raises(StoreError, match=r"(?s)^1 artefact.*Nothing was copied.*merge again") as caught:
        merged(theirs, ours)
    for word in (f"{ADAPTER.stage}/{ADAPTER.key}", *words):
        assert word in str(caught.value)
    assert left(ours.root) == before


def test_a_manifest_states_the_contents_of_all_that_an_artefact_was_made_from(tmp_path: Path) -> None:
    store = trained(tmp_path, "weights")
    found = {step: store.find(step) for step in (ADAPTER, IN_DOMAIN, VERDICTS)}
    contents = {one.name: one.content for one in found.values() if one is not None}
    assert [len(one.made_from) for one in found.values() if one is not None] == [0, 1, 2]
    verdicts = found[VERDICTS]
    assert verdicts is not None
    assert verdicts.made_from == {name: contents[name] for name in contents if name != verdicts.name}
    store.remove(ADAPTER)
    second = make(store, From("verdicts", "second", (IN_DOMAIN,)), "also without the adapter")
    assert second.made_from == verdicts.made_from
    make(other := Store(tmp_path / "other"), ADAPTER, "weights", seconds=3.0)
    assert other.find(ADAPTER).content == contents[f"adapter/{ADAPTER.key}"]  # type: ignore[union-attr]
    # A step that no artefact stands for, such as all batches of a model's own answers, stands for its inputs.
    rows = make(other, From("added_rows", "rows", (From("on_policy", "all", (ADAPTER,)),)), "rows")
    assert rows.made_from == {f"adapter/{ADAPTER.key}": contents[f"adapter/{ADAPTER.key}"]}


def test_what_was_made_from_the_same_is_merged_though_it_was_removed_there(tmp_path: Path, ours: Store) -> None:
    theirs = trained(tmp_path, "weights")
    theirs.remove(ADAPTER)
    assert merged(theirs, ours).artefacts == 2
    forget(ours, GENERAL)
    assert merged(theirs, ours).here_already == 2


@pytest.mark.parametrize("removed", [
    lambda theirs, _: theirs.remove(ADAPTER),
    lambda _, ours: ours.remove(ADAPTER),
    lambda theirs, ours: (theirs.remove(ADAPTER), ours.remove(ADAPTER)),
    lambda theirs, _: (theirs.remove(ADAPTER), theirs.remove(IN_DOMAIN))], ids=["there", "here", "both", "answers too"])
def test_what_was_made_from_another_training_is_refused(
        tmp_path: Path, ours: Store, removed: Callable[[Store, Store], object]) -> None:
    theirs = trained(tmp_path, "other weights")
    removed(theirs, ours)
    refused(theirs, ours, str(ours.root), str(theirs.root))


def test_what_an_earlier_version_made_from_what_is_removed_there_is_refused(tmp_path: Path, ours: Store) -> None:
    """Nothing says whether it is the same."""
    theirs = trained(tmp_path, "weights")
    theirs.remove(ADAPTER)
    forget(theirs, IN_DOMAIN, VERDICTS)
    refused(theirs, ours, f"theirs {theirs.root / 'answers' / IN_DOMAIN.key}, made from unknown content",
            str(ours.root / "adapter" / ADAPTER.key))
    make(theirs, ADAPTER, "weights")  # copied back
    assert merged(theirs, ours).artefacts == 2


def test_what_is_removed_here_is_not_replaced_by_what_may_be_another_training(tmp_path: Path, ours: Store) -> None:
    theirs = trained(tmp_path, "weights")
    forget(ours, GENERAL)
    ours.remove(ADAPTER)
    refused(theirs, ours, f"ours {ours.root / 'answers' / GENERAL.key}, made from unknown content",
            str(theirs.root / "adapter" / ADAPTER.key))
    ours.remove(GENERAL)
    assert merged(theirs, ours).artefacts == 3


def test_what_was_made_here_before_from_another_training_hinders_no_merge(tmp_path: Path, ours: Store) -> None:
    """That is so already, and is not made worse."""
    ours.remove(ADAPTER)
    make(ours, ADAPTER, "trained again, to other weights")
    theirs = trained(tmp_path, "trained again, to other weights")
    assert merged(theirs, ours).artefacts == 2


def test_inputs_that_neither_side_has_and_none_states_hinder_no_merge(tmp_path: Path, ours: Store) -> None:
    theirs = trained(tmp_path, "weights")
    for store in (ours, theirs):
        store.remove(ADAPTER)
    forget(ours, GENERAL)
    forget(theirs, IN_DOMAIN, VERDICTS)
    assert merged(theirs, ours).artefacts == 2


def test_a_damaged_artefact_of_ours_that_they_lack_hinders_no_merge(tmp_path: Path, ours: Store) -> None:
    (ours.root / "answers" / GENERAL.key / MANIFEST).write_text("{}")
    assert merged(trained(tmp_path, "weights"), ours).artefacts == 2
