"""What was measured of a model in this store: how fast it learnt and answered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emlib.config import FolderModel, ModelSpec
from emlib.models.identity import identity
from emlib.store.artefacts import MANIFEST, Store


@dataclass(frozen=True)
class Taken:
    """So many artefacts, the tokens of them all, and the seconds that they took."""

    count: int
    tokens: int
    seconds: float


def trained(store: Store, spec: ModelSpec) -> Taken:
    """Adapters of the model, under whatever profile."""
    return _sum((facts["tokens"], facts["seconds"]) for facts, _ in _manifests(store, "adapter", spec))


def answered(store: Store, spec: ModelSpec) -> Taken:
    """Sets of answers of the model that were drawn in one sitting, so that their seconds are all of them."""
    return _sum((facts["tokens"], seconds) for facts, seconds in _manifests(store, "answers", spec)
                if facts.get("one_sitting"))


def _manifests(store: Store, stage: str, spec: ModelSpec) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Facts and seconds of each finished artefact; none of a folder's model, whose weights would have to be hashed."""
    if isinstance(spec, FolderModel):
        return
    mine = identity(spec)
    for path in sorted(store.root.glob(f"{stage}/*/{MANIFEST}")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"]["model"] == mine and not path.parent.name.endswith(".partial"):
            yield found["facts"], found["seconds_last_sitting"]


def _sum(pairs: Iterator[tuple[int, float]]) -> Taken:
    listed = list(pairs)
    return Taken(len(listed), sum(tokens for tokens, _ in listed), sum(seconds for _, seconds in listed))
