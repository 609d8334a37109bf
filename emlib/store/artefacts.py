"""Artefacts on disk: made once, found again by key, and complete or absent.

An artefact is a folder `<root>/<stage>/<key>/`. The key is a hash of everything that determines the artefact: its
settings and the keys of its inputs. While it is being made, its folder is `<key>.partial`. There a maker keeps its
progress under `work/`, which is deleted at the end. The manifest is written last and then the folder is renamed, so
that a folder with its final name is complete.
If two processes want the same artefact at once, one makes it and the other waits. They may run on two machines that
share the folder, if its file system supports locks across machines (workflow/README.md has a check).
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from emlib.core import digests, paths, temporary
from emlib.core.digests import FORMAT, key_of
from emlib.core.errors import StoreError
from emlib.core.files import disk_errors, made_again, read_records, write_text
from emlib.core.progress import say
from emlib.core.step import Step
from emlib.evaluation.records import READINGS
from emlib.store import manifests
from emlib.store.manifests import MANIFEST
from emlib.training.records import LOG
from emlib.training.rl.records import STEPS

SCRATCH = "work"
COPY, GONE, INCOMPLETE = ".copy", ".gone", ".incomplete"  # suffixes of folders that are no artefacts
VERSIONED = ("torch", "transformers", "peft", "numpy")
TIMED = (LOG, STEPS)  # files with seconds in them, which differ between two machines
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Artefact:
    """A finished artefact: where it is, what determines it, the facts that its maker recorded, and its files' digests.

    `made_from` has the `content` of each artefact that it was made from, by `name`, and of those that these were made
    from. Artefacts of earlier versions of emlib do not state it.

    Its files are read through `file` and `folder` alone, which compare them with their digests, each file once in a
    process.
    """

    stage: str
    key: str
    place: Path  # for messages
    settings: Mapping[str, Any]
    facts: Facts
    files: Mapping[str, str]
    made_from: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its stage and key, which are its place in a store."""
        return f"{self.stage}/{self.key}"

    @property
    def content(self) -> str:
        """The digest of its files, without those that differ between two machines: seconds, and what a monitor read."""
        return digests.of_value({name: found for name, found in self.files.items() if name not in (*TIMED, READINGS)})

    @property
    def folder(self) -> Path:
        """Its folder, after comparing every file with its digest."""
        self.verify()
        return self.place

    def verify(self) -> None:
        """Raise StoreError if a file is missing, or was changed."""
        for name in self.files:
            self.file(name)

    def file(self, name: str) -> Path:
        """Return the path of one of its files, after comparing the file with its digest.

        Raises:
            StoreError: the file is missing, or was changed.
        """
        path = self.place / name
        if not path.is_file() or digests.of_unchanged_file(path) != self.files.get(name):
            damage = "changed" if path.is_file() else "missing"
            raise StoreError(f"{path}: is not the file that was made ({damage}, by the digest in {MANIFEST}). "
                             f"{made_again(self.place)}")
        return path

    def records(self, step: Step) -> list[Any]:
        """Read the records of `step`, whose artefact this is."""
        return step.completed(read_records(self.file(step.records.name), step.records.kind))

    def has(self, name: str) -> bool:
        """Whether it has a file of this name."""
        return name in self.files

    @property
    def size(self) -> int:
        """The size of its files in bytes."""
        return sum(path.stat().st_size for path in self.place.iterdir())


class Store:
    """The artefacts under one folder. Opening it writes nothing, and refuses a store of another format."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._check_format()

    def find(self, step: Step) -> Artefact | None:
        """Return the step's artefact; None if it is not finished."""
        return self.at(step.stage, step.key)

    def at(self, stage: str, key: str) -> Artefact | None:
        """Return the artefact with that key; None if it is not finished."""
        folder = self.root / stage / key
        found = manifests.read(folder)
        if found is None:
            return None
        if key_of(stage, found.settings) != key:
            raise StoreError(f"{folder / MANIFEST}: its settings are not those of its key. The folder was renamed, or "
                             f"its manifest is another artefact's. Move {folder} away.")
        return Artefact(stage, key, folder, found.settings, found.facts, found.files, found.made_from)

    def entries(self) -> Iterator[tuple[str, str]]:
        """Yield the stage and key of every folder of an artefact, finished or damaged, stage by stage."""
        for stage in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if stage.is_dir():
                for path in sorted(stage.iterdir()):
                    # A suffix marks an artefact that is being made, copied or deleted, or another kind of file.
                    if not path.suffix and not path.name.startswith("."):
                        yield stage.name, path.name
            elif not stage.suffix and not stage.name.startswith("."):
                raise StoreError(f"{stage}: is a file, and the store has a folder there. Move it away.")

    def all(self) -> Iterator[Artefact]:
        """Yield every finished artefact, stage by stage."""
        for stage, key in self.entries():
            if (found := self.at(stage, key)) is not None:
                yield found

    def adopt(self, artefact: Artefact) -> None:
        """Copy a finished artefact from another store, after checking it, unless this store has one with its key."""
        with disk_errors(self.root):
            self._begin(artefact.stage)
            with self.lock(artefact.stage, artefact.key):
                if self.at(artefact.stage, artefact.key) is not None:
                    return
                folder = self.root / artefact.stage / artefact.key
                copy = folder.with_suffix(COPY)
                self._make_room(folder)
                shutil.copytree(artefact.place, copy, ignore=shutil.ignore_patterns(SCRATCH))
                replace(artefact, place=copy).verify()
                os.replace(copy, folder)

    def remove(self, step: Step) -> bool:
        """Delete a step's finished artefact, after waiting for its lock. Return whether there was one."""
        found = self.find(step)
        if found is None:
            return False
        with self.lock(step.stage, found.key):
            self._make_room(found.place)
            gone = found.place.with_suffix(GONE)  # renamed first, so that no half-deleted artefact is found
            os.replace(found.place, gone)
            shutil.rmtree(gone)
        return True

    def lock(self, stage: str, key: str) -> FileLock:
        """Return the lock under which one process makes, copies or deletes an artefact."""
        return FileLock(self.root / stage / f".{key}.lock")

    def get(self, step: Step, make: Callable[[Path], Facts]) -> Artefact:
        """Return the step's artefact. If it is missing, `make(folder)` makes it and returns its facts.

        `folder` may contain files of an interrupted attempt, and `folder / SCRATCH` is for files that only serve to
        continue one. If `make` raises, both are kept for the next attempt.

        Raises:
            StoreError: the disk is full, or the folder cannot be written.
        """
        with disk_errors(self.root):
            self._begin(step.stage)
            with self.lock(step.stage, step.key):
                found = self.find(step)
                if found is None:
                    return self._make(step, make)
                shutil.rmtree(found.place / SCRATCH, ignore_errors=True)  # of a process killed at its very end
                return found

    def _make(self, step: Step, make: Callable[[Path], Facts]) -> Artefact:
        stage, key = step.stage, step.key
        folder, partial = self.root / stage / key, self.root / stage / f"{key}.partial"
        self._make_room(folder)
        (partial / SCRATCH).mkdir(parents=True, exist_ok=True)
        (partial / MANIFEST).unlink(missing_ok=True)
        for leftover in list(partial.rglob(".*")):  # of an attempt that was killed while writing
            temporary.remove(leftover)
        _current_settings(step)
        started = time.perf_counter()
        facts = dict(make(partial))
        files = {path.name: digests.of_file(path) for path in sorted(partial.iterdir()) if path.is_file()}
        settings, made_from = _current_settings(step), self._contents(step.inputs)
        manifest = {
            "stage": stage, "key": key, "settings": settings, "facts": facts, "made_from": made_from,
            "seconds": round(time.perf_counter() - started, 3),  # since the last start
            "files": files,
            "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
            "python": platform.python_version(), "machine": platform.machine(),
        }
        manifests.write(partial, manifest)
        os.replace(partial, folder)
        shutil.rmtree(folder / SCRATCH)
        return Artefact(stage, key, folder, settings, facts, files, made_from)

    def _contents(self, steps: Iterable[Step]) -> dict[str, str]:
        """Return the contents of the artefacts of these steps, and of those that they were made from, by name.

        A step without an artefact, such as all batches of a model's own answers, stands for its inputs.
        """
        found: dict[str, str] = {}
        for step in steps:
            made = self.find(step)
            found |= self._contents(step.inputs) if made is None else {**made.made_from, made.name: made.content}
        return found

    def _make_room(self, folder: Path) -> None:
        """Remove what killed processes left beside an artefact's place, and move a folder without manifest away.

        The artefact's lock is held, so that nobody is writing there.
        """
        for suffix in (COPY, GONE):
            shutil.rmtree(folder.with_suffix(suffix), ignore_errors=True)
        if folder.is_dir() and not (folder / MANIFEST).exists():
            aside = next(path for number in itertools.count(1)
                         if not (path := folder.with_suffix(f"{INCOMPLETE}-{number}")).exists())
            os.replace(folder, aside)
            say(f"{folder}: has no {MANIFEST}, so it is not used and made again. It is now {aside}, which you may "
                "delete.")

    def _begin(self, stage: str) -> None:
        (self.root / stage).mkdir(parents=True, exist_ok=True)
        if not (self.root / "format.json").is_file():
            temporary.sweep(self.root, deep=False)
            write_text(self.root / "format.json", json.dumps({"format": FORMAT}))

    def _check_format(self) -> None:
        path = self.root / "format.json"
        if not path.is_file():
            return
        try:
            found = int(json.loads(path.read_text(encoding="utf-8"))["format"])
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{path}: does not state the format of this store. Nothing was changed. Restore the file, "
                             "or set EMLIB_RUNS_DIR to another folder.") from None
        if found != FORMAT:
            whose = "an older" if found < FORMAT else "a newer"
            raise StoreError(f"{self.root}: this store has format {found}, of {whose} version of emlib, and this "
                             f"version has format {FORMAT}. Nothing in it is read or changed. Go on with that version; "
                             "or set EMLIB_RUNS_DIR to a new folder, and copy scores.sqlite* and labels/, which "
                             f"lie in {self.root.parent}, into it: they keep judges' scores, which are then not paid "
                             "for again, and people's labels. PEFT can load the adapters in this store.")


def _current_settings(step: Step) -> dict[str, Any]:
    """Return a step's settings, after comparing them with its key, which was computed when the study was opened.

    Raises:
        StoreError: a file or a cell that they have the digest of was changed since.
    """
    settings = step.settings
    if key_of(step.stage, settings) != step.key:
        raise StoreError(f"{step.title}: a file or a cell that it is made from was changed after the study was opened "
                         "(a source that the profile names, an adapter of your own, or the file or the notebook's cell "
                         "of a defense, or of what it uses), and its key has the former one. Nothing was stored. Open "
                         "the study again (restart the notebook, or run the same command), and the new one has its own "
                         "key; or undo the change.")
    return settings


def open_store() -> Store:
    """Open the store of all studies, in the folder of results.

    Raises:
        StoreError: it has the format of another version of emlib.
    """
    return Store(paths.runs() / paths.STORE)
