"""Artefacts on disk: made once, found again, never half there.

An artefact is a folder `<root>/<stage>/<key>/`. The key is a hash of everything that determines it: its settings and
the keys of what it is made from. While it is being made its folder is `<key>.partial`, where a maker leaves what it can
go on from (under `work/`, dropped at the end); the manifest is written last and the folder renamed, so that whatever
bears its final name is whole.
Two processes that want the same artefact at once: one makes it, the other waits. They may be on two machines that share
the folder, if its file system locks for all of them (workflow/README.md tells how to try that).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from emlib.core import digests
from emlib.core.digests import FORMAT
from emlib.core.errors import StoreError
from emlib.core.files import disk_errors, write_text
from emlib.core.step import Step

MANIFEST = "manifest.json"
SCRATCH = "work"
VERSIONED = ("torch", "transformers", "peft", "numpy")
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Artefact:
    """A finished artefact: its folder, the facts that its maker told, and the digest of each of its files."""

    stage: str
    key: str
    folder: Path
    facts: Facts
    files: Mapping[str, str]

    def file(self, name: str) -> Path:
        """One of its files, just as it was made.

        Raises:
            StoreError: it is missing, or has changed since.
        """
        path = self.folder / name
        if not path.is_file() or digests.of_file(path) != self.files.get(name):
            raise StoreError(f"{path}: is not what was made ({'changed' if path.is_file() else 'missing'}, by the "
                             f"digest in {MANIFEST}). Nothing is read from it. Move the folder {self.folder} away: it "
                             "is made again when it is next asked for.")
        return path

    def checked(self) -> Path:
        """Its folder, after every file in it was found to be as it was made.

        Raises:
            StoreError: a file is missing, or has changed since.
        """
        for name in self.files:
            self.file(name)
        return self.folder


def settings_of(folder: Path) -> Mapping[str, Any]:
    """What an artefact was made from, as its manifest says; nothing where the folder has none."""
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8"))["settings"] if path.is_file() else {}


class Store:
    """The artefacts under one folder. Opening it writes nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._check_format()

    def find(self, step: Step) -> Artefact | None:
        """The step's artefact, if it is finished."""
        return self.at(step.stage, step.key)

    def at(self, stage: str, key: str) -> Artefact | None:
        """The artefact of that key, if it is finished."""
        path = self.root / stage / key / MANIFEST
        if not path.is_file():
            return None
        told = json.loads(path.read_text(encoding="utf-8"))
        return Artefact(stage, key, path.parent, told["facts"], told["files"])

    def all(self) -> Iterator[Artefact]:
        """Every finished artefact, stage by stage."""
        for path in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            folder = path.parent  # with a suffix it is in the making, or on its way out
            if not folder.suffix and (found := self.at(folder.parent.name, folder.name)) is not None:
                yield found

    def adopt(self, artefact: Artefact) -> None:
        """Copy a finished artefact of another store, unless there is one of its key.

        Raises:
            StoreError: a file of it is not what was made, or the disk is full.
        """
        with disk_errors(self.root):
            self._begin(artefact.stage)
            with self.lock(artefact.stage, artefact.key):
                if self.at(artefact.stage, artefact.key) is not None:
                    return
                folder = self.root / artefact.stage / artefact.key
                aside = folder.with_suffix(".copy")
                shutil.rmtree(aside, ignore_errors=True)  # of a copy that was interrupted
                shutil.copytree(artefact.folder, aside)
                replace(artefact, folder=aside).checked()
                os.replace(aside, folder)

    def remove(self, step: Step) -> bool:
        """Delete a step's finished artefact; whether there was one. What is made at this moment is waited for."""
        found = self.find(step)
        if found is None:
            return False
        with self.lock(step.stage, found.key):
            gone = found.folder.with_suffix(".gone")  # out of sight at once, whatever happens to the deleting
            os.replace(found.folder, gone)
            shutil.rmtree(gone)
        return True

    def lock(self, stage: str, key: str) -> FileLock:
        """What keeps all others from making, copying or deleting an artefact."""
        return FileLock(self.root / stage / f".{key}.lock")

    def get(self, step: Step, make: Callable[[Path], Facts]) -> Artefact:
        """The step's artefact, made by `make(folder)` if it is not there; what `make` returns are its facts.

        `folder` may hold what an interrupted attempt left; `folder / SCRATCH` is for what only serves to go on from. If
        `make` raises, both stay for the next attempt.

        Raises:
            StoreError: the disk is full, or the folder cannot be written.
        """
        with disk_errors(self.root):
            self._begin(step.stage)
            with self.lock(step.stage, step.key):
                return self.find(step) or self._make(step, make)

    def _make(self, step: Step, make: Callable[[Path], Facts]) -> Artefact:
        stage, key = step.stage, step.key
        folder, partial = self.root / stage / key, self.root / stage / f"{key}.partial"
        (partial / SCRATCH).mkdir(parents=True, exist_ok=True)
        for leftover in (partial / MANIFEST, *partial.glob(".*")):  # of an attempt that was killed while it wrote
            leftover.unlink(missing_ok=True)
        started = time.perf_counter()
        facts = dict(make(partial))
        files = {path.name: digests.of_file(path) for path in sorted(partial.iterdir()) if path.is_file()}
        manifest = {
            "stage": stage, "key": key, "settings": step.identity, "facts": facts,
            "seconds_last_sitting": round(time.perf_counter() - started, 3),
            "files": files,
            "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
            "python": platform.python_version(), "machine": platform.machine(),
        }
        write_text(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
        os.replace(partial, folder)
        shutil.rmtree(folder / SCRATCH)
        return Artefact(stage, key, folder, facts, files)

    def _begin(self, stage: str) -> None:
        (self.root / stage).mkdir(parents=True, exist_ok=True)
        if not (self.root / "format.json").is_file():
            write_text(self.root / "format.json", json.dumps({"format": FORMAT}))

    def _check_format(self) -> None:
        path = self.root / "format.json"
        if not path.is_file():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["format"]
        except (ValueError, KeyError, TypeError):
            found = None
        if found != FORMAT:
            raise StoreError(f"{self.root}: this store has format {found}, and this emlib writes format {FORMAT}. "
                             "Nothing was changed. Move the folder away, or set EMLIB_RUNS_DIR to another one; the "
                             "adapters in it stay usable by hand.")
