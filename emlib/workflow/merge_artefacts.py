"""Comparing another machine's artefacts with ours, before any is copied: each by itself, and what it was made from.

An artefact's key says what it was to be, and not what it became: two machines may train one adapter to different
weights. If both still have it, the two are compared. If one side has removed it (`make clean WHAT=adapters`) and kept
what was made from it, that states in its manifest which content it was made from. Artefacts of earlier versions do not.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from emlib.core import digests
from emlib.core.errors import StoreError
from emlib.core.files import damaged
from emlib.evaluation.records import READINGS, read_readings
from emlib.models import hub
from emlib.scoring import loss_cache
from emlib.steps.measures import PanelResult
from emlib.store.artefacts import TIMED, Artefact, Store
from emlib.store.manifests import MANIFEST

OF_MACHINE = ("device", "seconds", "backend", "backend_why", "processes")  # facts that differ between two machines
KEY = re.compile(r"[0-9a-f]{16}")
Side = Mapping[str, Artefact]  # artefacts of one side, by name
Said = Mapping[str, Mapping[str | None, Artefact]]  # by an artefact's name: its contents, None if unknown; and by whom


def compared(store: Store, other: Store) -> tuple[list[Artefact], int]:
    """Return the artefacts of the other store that are missing here, and how many are here already, with equal content.

    Raises:
        StoreError: artefacts on one of the sides are damaged, have different content on the two sides, or were made
            from what has different content there, or may have.
    """
    damage: list[str] = []
    there = {one.name: one for stage, key in other.entries() if (one := _whole(other, stage, key, damage)) is not None}
    both = {name: own for name, one in there.items()
            if (own := _whole(store, one.stage, one.key, damage, missing=True)) is not None}
    _refuse("are damaged", damage, "Move them away, on the side where they are; `make reproduce` makes them again.")
    _refuse("have different content on the two sides", [
        f"{name}: ours {own.place}, theirs {there[name].place}" for name, own in both.items()
        if not _equal(there[name], own)],
        "Choose one side, move the other side's folder away together with the artefacts made from it, and merge again.")
    _refuse("are not the same on the two sides, or nobody knows, as one side has removed them",
            _mixed(dict(_readable(store)), there),
            "What was made from them here and there would be mixed, and may be of two trainings. Copy what is missing "
            "back to the side that made something from it; or choose one side, move away what the other one made from "
            "it, and merge again.")
    return [one for name, one in there.items() if name not in both], len(both)


def _readable(store: Store) -> Iterator[tuple[str, Artefact]]:
    """Yield the names and artefacts of a store, without damaged ones, which nothing uses."""
    for stage, key in store.entries():
        with suppress(StoreError):
            if (found := store.at(stage, key)) is not None:
                yield found.name, found


def _mixed(ours: Side, theirs: Side) -> list[str]:
    """Return a line for each artefact whose content here is not the one of which something new there was made.

    New artefacts may have been made from contents from which ours were, too. What both sides have is equal, be it
    written in other bytes.
    """
    names = {name.rpartition("/")[2]: name for one in (*ours.values(), *theirs.values())
             for name in (one.name, *one.made_from)}
    new = [one for name, one in theirs.items() if name not in ours]
    here = _contents(ours, ours.values(), [one for name, one in ours.items() if name not in theirs], names)
    there = _contents(theirs, new, new, names)

    def is_here(name: str, content: str | None) -> bool:
        """Return whether ours use `name` with this content, or do not use it at all."""
        if name in ours and name in theirs and content == theirs[name].content:
            content = ours[name].content
        return name not in here or content in here[name]

    lines = []
    for name, said in there.items():
        other = {content: one for content, one in said.items() if not is_here(name, content)}
        if other:
            lines.append(f"{name}: ours {_told(name, here[name])}, theirs {_told(name, other)}.")
    return lines


def _contents(side: Side, present: Iterable[Artefact], made: Iterable[Artefact], names: Mapping[str, str]) -> Said:
    """Return the contents of the artefacts that are `present`, and of those that artefacts were `made` from.

    If an artefact does not state the content of an input, that of the input on its side is taken.
    """
    found: dict[str, dict[str | None, Artefact]] = defaultdict(dict)
    for one in present:
        found[one.name][one.content] = one
    for one in made:
        for name in {*one.made_from, *(names[key] for key in _keys(one.settings) if key in names)}:
            content = one.made_from.get(name) or (side[name].content if name in side else None)
            found[name].setdefault(content, one)
    return found


def _keys(settings: Any) -> Iterator[str]:
    """Yield everything in an artefact's settings that may be a key."""
    if isinstance(settings, str):
        yield from (settings,) if KEY.fullmatch(settings) else ()
    elif isinstance(settings, dict | list):
        for part in settings.values() if isinstance(settings, dict) else settings:
            yield from _keys(part)


def _told(name: str, said: Mapping[str | None, Artefact]) -> str:
    content, one = next(iter(said.items()))
    known = "unknown content" if content is None else f"content {content[:8]}"
    return f"{one.place}, {'with' if one.name == name else 'made from'} {known}"


def commits(ours: Path, theirs: Path) -> dict[str, str]:
    """Return the commits of the branches from which their artefacts come, after comparing them with ours."""
    here, there = hub.commits(ours), hub.commits(theirs)
    differ = [f"{name}: ours {here[name]}, theirs {found}" for name, found in there.items()
              if here.get(name, found) != found]
    if differ:
        raise StoreError("\n".join([
            "The artefacts of the two sides come from different commits of a model. Nothing was copied.", *differ,
            "Their keys have the branch's name alone, so that the two would be mixed. Set the model's revision to a "
            "commit, and make one side again."]))
    return there


def other_losses(theirs: Path, ours: Path) -> list[Path]:
    """Return their files of the losses of pool rows that ours are not equal to.

    They are not copied. The adapter under which the losses were computed is only in the hash that names the file, and
    of it only its key: if it was removed on one side, nobody knows whether both sides had trained the same.
    """
    return [path for path in sorted((theirs / loss_cache.FOLDER).glob("*.jsonl"))
            if not (own := ours / loss_cache.FOLDER / path.name).is_file() or own.read_bytes() != path.read_bytes()]


def _whole(store: Store, stage: str, key: str, damage: list[str], *, missing: bool = False) -> Artefact | None:
    """Return an artefact after checking all of it; None if it is damaged, with a line added to `damage`.

    A folder without its manifest is damaged, unless it may be `missing`: then it is made room for.
    """
    try:
        found = store.at(stage, key)
        if found is not None:
            found.verify()
        elif not missing:
            damage.append(f"{store.root / stage / key}: has no {MANIFEST}")
        return found
    except StoreError as error:
        damage.append(str(error).split(". ")[0])
        return None


def _equal(one: Artefact, other: Artefact) -> bool:
    """Whether two artefacts have the same files, apart from seconds; or files of the same content, written otherwise.

    Of a benchmark's result the scores are compared: inspect's log beside them has times, a name and ids of its own. An
    artefact without files, such as losses on held-out rows, has its content in its facts.
    """
    if one.stage == PanelResult.stage:
        return one.facts["metrics"] == other.facts["metrics"]
    files = {path.name for made in (one, other) for path in made.place.iterdir() if path.is_file()}
    names = files - {MANIFEST, *TIMED}
    return all(_equal_files(one.place / name, other.place / name) for name in names) if names else (
        _content(one) == _content(other))


def _content(artefact: Artefact) -> dict[str, Any]:
    return {name: value for name, value in artefact.facts.items() if name not in OF_MACHINE}


def _equal_files(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes or, of a known kind, the same tensors or the same values."""
    if not (one.is_file() and other.is_file()):
        return one.name == READINGS  # a run may have been monitored on one machine alone
    if digests.of_unchanged_file(one) == digests.of_unchanged_file(other):
        return True
    if one.suffix == ".safetensors":
        from emlib.models import tensors  # loads torch

        return tensors.same(one, other)
    return (one.suffix == ".json" or one.name == READINGS) and _values(one) == _values(other)


def _values(path: Path) -> Any:
    """Return the values of a JSON file, or a monitor's readings without their seconds."""
    if path.name == READINGS:
        return [replace(reading, seconds=0.0) for reading in read_readings(path.parent)]
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, str(error)) from error


def _refuse(fault: str, artefacts: list[str], way_out: str) -> None:
    if artefacts:
        raise StoreError("\n".join([f"{len(artefacts)} artefacts {fault}. Nothing was copied.", *artefacts, way_out]))
