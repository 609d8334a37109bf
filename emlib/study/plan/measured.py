"""The training and sampling speed of a model, measured from the artefacts in a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emlib.config import FolderModel, ModelSpec
from emlib.store import manifests
from emlib.store.artefacts import Store


@dataclass(frozen=True)
class Taken:
    """The number of artefacts, and the sum of their tokens and of their seconds."""

    count: int
    tokens: int
    seconds: float


def trained(store: Store, spec: ModelSpec) -> Taken:
    """Sum up the model's adapters, of all profiles."""
    return _sum((facts["tokens"], facts["seconds"]) for facts, _ in _manifests(store, "adapter", spec))


def answered(store: Store, spec: ModelSpec) -> Taken:
    """Sum up the model's sets of answers that were sampled in one session, whose seconds are complete.

    Of sets that a server sampled at once, each has its share of the time. Sets from a server by an earlier version of
    emlib are left out, because their times overlap.
    """
    return _sum((facts["tokens"], facts.get("sampling_seconds", seconds))
                for facts, seconds in _manifests(store, "answers", spec)
                if facts.get("one_session") and ("sampling_seconds" in facts or facts.get("backend") == "transformers"))


def _manifests(store: Store, stage: str, spec: ModelSpec) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Yield facts and seconds of each finished artefact; none of a model in a folder, to avoid hashing its weights."""
    if isinstance(spec, FolderModel):
        return
    wanted = spec.identity
    for other, key in store.entries():
        found = manifests.read(store.root / stage / key) if other == stage else None
        if found is not None and found.settings["model"] == wanted:
            yield found.facts, found.seconds


def _sum(pairs: Iterator[tuple[int, float]]) -> Taken:
    listed = list(pairs)
    return Taken(len(listed), sum(tokens for tokens, _ in listed), sum(seconds for _, seconds in listed))
