"""Merging what another machine computed: its artefacts, the scores of judges and labels of people, finished slices.

    rsync -a elsewhere:emlib/runs/ /tmp/theirs/ && python -m emlib.workflow.merge /tmp/theirs

Everything is checked before anything is copied. If both sides have an artefact with the same key and different content,
nothing is copied, because other artefacts may have been made from it. No artefact here is overwritten. Of two labels
that one person gave to one answer the later one holds. Batches of judges that are still open there can be collected on
either side afterwards. An interrupted merge can be repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from emlib.core import digests, paths
from emlib.core.errors import StoreError, ends_with_message
from emlib.core.files import damaged, read_records, write_objects, write_text
from emlib.core.of_kind import unknown_kinds_allowed
from emlib.evaluation.records import READINGS, read_readings
from emlib.judging import merging
from emlib.judging.judges import SCORES
from emlib.models import hub
from emlib.scoring import loss_cache
from emlib.steps.measures import PanelResult
from emlib.store.artefacts import Artefact, Store
from emlib.store.manifests import MANIFEST
from emlib.study import precision
from emlib.training.records import LOG
from emlib.training.rl.records import STEPS
from emlib.workflow import merge_studies

TIMED = (LOG, STEPS)  # files with seconds in them, which differ between two machines
OF_MACHINE = ("device", "seconds", "backend", "backend_why", "processes")  # facts that do, too


@dataclass(frozen=True)
class Merged:
    """How many artefacts, scores and slices were new, and how many artefacts were here already.

    `waiting` is how many scores wait in batches that were sent there, and `left` how many files of losses stay there.
    """

    artefacts: int
    here_already: int
    scores: int
    slices: int
    waiting: int = 0
    left: int = 0


def merge(theirs: Path, ours: Path) -> Merged:
    """Merge `theirs`, a copy of another machine's folder of runs, into `ours`.

    Raises:
        StoreError: `theirs` has no store, a store has another format, an artefact on one of the sides is damaged, or
            both have different content under one key, models of other commits, or data types. Nothing was copied.
        DataError: a score there is not valid. Nothing was copied.
    """
    if not (theirs / paths.STORE).is_dir():
        raise StoreError(f"{theirs}: no folder 'store' in it. Expected a copy of another machine's runs/ (or of the "
                         "folder that EMLIB_RUNS_DIR names there).")
    store, other = Store(ours / paths.STORE), Store(theirs / paths.STORE)
    of_models = _commits(store.root, other.root)
    damage: list[str] = []
    found = [one for stage, key in other.entries() if (one := _whole(other, stage, key, damage)) is not None]
    here = {(one.stage, one.key): own for one in found
            if (own := _whole(store, one.stage, one.key, damage, missing=True)) is not None}
    _refuse("are damaged", damage, "Move them away, on the side where they are; `make reproduce` makes them again.")
    _refuse("have different content on the two sides", [
        f"{one.stage}/{one.key}: ours {here[one.stage, one.key].place}, theirs {one.place}" for one in found
        if (one.stage, one.key) in here and not _equal(one, here[one.stage, one.key])],
        "Choose one side, move the other side's folder away together with the artefacts made from it, and merge again.")
    labels = {path.name: _later(_labels(path), _labels(ours / paths.LABELS / path.name))
              for path in sorted((theirs / paths.LABELS).glob("*.jsonl"))}
    scores, types = merging.read(theirs / SCORES), merge_studies.new_types(theirs, ours)
    new = [one for one in found if (one.stage, one.key) not in here]
    if of_models:
        hub.record(store.root, of_models)
    for one in new:
        store.adopt(one)
    for study, dtype in types.items():
        write_text(ours / study / precision.RECORD, f"{dtype}\n")
    for name, both in labels.items():
        write_objects(ours / paths.LABELS / name, both)
    rows, waiting = merging.add(scores, ours / SCORES)
    slices = merge_studies.copy_slices(theirs, ours)
    return Merged(len(new), len(here), rows, slices, waiting, len(_other_losses(other.root, store.root)))


def _commits(ours: Path, theirs: Path) -> dict[str, str]:
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


def _whole(store: Store, stage: str, key: str, damage: list[str], *, missing: bool = False) -> Artefact | None:
    """Return an artefact after checking all of it; None if it is damaged, with a line added to `damage`.

    A folder without its manifest is damaged, unless it may be `missing`: then it is made room for.
    """
    try:
        found = store.at(stage, key)
        if found is not None:
            found.folder  # noqa: B018  checks every file
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


def _other_losses(theirs: Path, ours: Path) -> list[Path]:
    """Return their files of the losses of pool rows that ours are not equal to.

    They are not copied. The adapter under which the losses were computed is only in the hash that names the file, and
    of it only its key: if it was removed on one side, nobody knows whether both sides had trained the same.
    """
    return [path for path in sorted((theirs / loss_cache.FOLDER).glob("*.jsonl"))
            if not (own := ours / loss_cache.FOLDER / path.name).is_file() or own.read_bytes() != path.read_bytes()]


def _labels(path: Path) -> list[dict[str, Any]]:
    """Return a person's labels; none without a file."""
    return read_records(path, dict) if path.is_file() else []


def _later(theirs: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one label for each key: of several the later one, and of two of one second ours."""
    return list({label["key"]: label for label in sorted([*theirs, *ours], key=itemgetter("made"))}.values())


@ends_with_message()
def main(arguments: list[str]) -> None:
    """Run the command line."""
    if len(arguments) != 1 or not arguments[0]:
        print("Name the folder to merge: make merge FROM=/a/copy/of/their/runs", file=sys.stderr)
        sys.exit(2)
    with unknown_kinds_allowed():  # runs no plugin
        done = merge(Path(arguments[0]), paths.runs())
    print(f"{done.artefacts} artefacts, {done.scores} scores of judges and {done.slices} executed slices are new; "
          f"{done.here_already} artefacts were here already. `make reproduce` continues from here.")
    if done.left:
        print(f"{done.left} file{'s' if done.left > 1 else ''} with losses of pool rows (store/nll) "
              f"{'were' if done.left > 1 else 'was'} not copied: which training they are of is not known. Whole pools "
              "that were scored are among the artefacts; of others the rest is scored here again.")
    if done.waiting:
        print(f"{done.waiting} scores wait in batches that were sent there. With the same API key they are collected "
              "here as well, and paid once; with another key, collect them there and merge again first.")


if __name__ == "__main__":
    main(sys.argv[1:])
