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
    """A finished artefact: its folder, the facts that its maker recorded, and the digest of each of its files."""

    stage: str
    key: str
    folder: Path
    facts: Facts
    files: Mapping[str, str]

    def file(self, name: str) -> Path:
        """Return the path of one of its files, after comparing the file with its digest.

        Raises:
            StoreError: the file is missing, or was changed.
        """
        path = self.folder / name
        if not path.is_file() or digests.of_file(path) != self.files.get(name):
            damage = "changed" if path.is_file() else "missing"
            raise StoreError(f"{path}: is not the file that was made ({damage}, by the digest in {MANIFEST}). It is "
                             f"not used. Move the folder {self.folder} away; it is made again when it is next needed.")
        return path

    def checked(self) -> Path:
        """Return its folder, after comparing every file with its digest.

        Raises:
            StoreError: a file is missing, or was changed.
        """
        for name in self.files:
            self.file(name)
        return self.folder


def settings_of(folder: Path) -> Mapping[str, Any]:
    """Return the settings in an artefact's manifest; empty if the folder has no manifest."""
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8"))["settings"] if path.is_file() else {}


class Store:
    """The artefacts under one folder. Opening it writes nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._check_format()

    def find(self, step: Step) -> Artefact | None:
        """Return the step's artefact; None if it is not finished."""
        return self.at(step.stage, step.key)

    def at(self, stage: str, key: str) -> Artefact | None:
        """Return the artefact with that key; None if it is not finished."""
        path = self.root / stage / key / MANIFEST
        if not path.is_file():
            return None
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return Artefact(stage, key, path.parent, manifest["facts"], manifest["files"])

    def all(self) -> Iterator[Artefact]:
        """Yield every finished artefact, stage by stage."""
        for path in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            folder = path.parent  # a suffix marks an artefact that is being made, copied or deleted
            if not folder.suffix and (found := self.at(folder.parent.name, folder.name)) is not None:
                yield found

    def adopt(self, artefact: Artefact) -> None:
        """Copy a finished artefact from another store, unless this store has one with the same key.

        Raises:
            StoreError: one of its files is missing or was changed, or the disk is full.
        """
        with disk_errors(self.root):
            self._begin(artefact.stage)
            with self.lock(artefact.stage, artefact.key):
                if self.at(artefact.stage, artefact.key) is not None:
                    return
                folder = self.root / artefact.stage / artefact.key
                copy = folder.with_suffix(".copy")
                shutil.rmtree(copy, ignore_errors=True)  # left by an interrupted copy
                shutil.copytree(artefact.folder, copy)
                replace(artefact, folder=copy).checked()
                os.replace(copy, folder)

    def remove(self, step: Step) -> bool:
        """Delete a step's finished artefact, after waiting for its lock. Return whether there was one."""
        found = self.find(step)
        if found is None:
            return False
        with self.lock(step.stage, found.key):
            gone = found.folder.with_suffix(".gone")  # renamed first, so that no half-deleted artefact is found
            os.replace(found.folder, gone)
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
                return self.find(step) or self._make(step, make)

    def _make(self, step: Step, make: Callable[[Path], Facts]) -> Artefact:
        stage, key = step.stage, step.key
        folder, partial = self.root / stage / key, self.root / stage / f"{key}.partial"
        (partial / SCRATCH).mkdir(parents=True, exist_ok=True)
        for leftover in (partial / MANIFEST, *partial.glob(".*")):  # of an attempt that was killed while writing
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
            raise StoreError(f"{self.root}: this store has format {found}, and this version of emlib needs format "
                             f"{FORMAT}. Nothing was changed. Move the folder away, or set EMLIB_RUNS_DIR to another "
                             "one. PEFT can still load the adapters in it.")
