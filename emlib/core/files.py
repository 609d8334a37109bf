"""Atomic writing of files and folders, records as JSON lines, and JSON lines that carry a checksum.

Progress is kept in the latter, `<JSON> TAB <16 hex digits>`, so that a damaged line is found and computed again. JSON
itself holds no tab.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from emlib.core import paths
from emlib.core.digests import of_text
from emlib.core.errors import StoreError
from emlib.core.progress import say
from emlib.core.temporary import FORMER, named

IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Explain a full or read-only disk, and a file or folder in the way; re-raise any other error."""
    mover = "EMLIB_CACHE_DIR" if path.is_relative_to(paths.cache()) else "EMLIB_RUNS_DIR"
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports the system's error in its message, "... (os error 28)"
        reported = re.search(r"os error (\d+)", str(error))
        code = error.errno if isinstance(error, OSError) else int(reported[1]) if reported else None
        where = Path(getattr(error, "filename2", None) or getattr(error, "filename", None) or path)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{path}: no space is left on the disk. Make room, or set {mover} to a folder elsewhere, "
                             "and start again: finished work is kept.") from error
        if code in (errno.EACCES, errno.EROFS):
            raise StoreError(f"{where}: cannot be written (read-only, or owned by somebody else). Fix that, or set "
                             f"{mover} to a folder elsewhere.") from error
        if code in IN_THE_WAY and (where.is_relative_to(path.parent) or path.is_relative_to(where)):
            raise StoreError(f"{in_the_way(where)}: is in the way ({os.strerror(code)}). Expected a folder where there "
                             "is a file, or a file where there is a folder. Move it away and start again.") from error
        raise


def in_the_way(path: Path) -> Path:
    """Return the file that is where `path` needs a folder; the path itself if none is."""
    return next((place for place in (path, *path.parents) if place.is_file()), path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end; after an error `path` is unchanged.

    The file is on the disk before it has its name, so that a power cut leaves the old file or the new one.
    """
    aside = named(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            with aside.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` at the end; after an error `path` is unchanged."""
    aside, old = named(path), named(path, FORMER)
    with disk_errors(path):
        aside.mkdir(parents=True)
        try:
            yield aside
            if path.exists():
                os.replace(path, old)
            os.replace(aside, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        finally:
            for leftover in (aside, old):
                shutil.rmtree(leftover, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="")


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Write dataclass records as JSON lines, without fields whose metadata say `{"stored": False}`."""
    write_objects(path, map(_stored, records))


def write_objects(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Write mappings as JSON lines."""
    write_text(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects))


def _stored(record: Any) -> dict[str, Any]:
    left_out = {field.name for field in fields(record) if not field.metadata.get("stored", True)}
    return {name: value for name, value in asdict(record).items() if name not in left_out}


def read_records(path: Path, kind: Callable[..., Any]) -> list[Any]:
    """Read the records that `write_records` wrote.

    Raises:
        StoreError: a line is no such record; the message names the file and the line.
    """
    return _records(path, path.read_bytes(), kind)


@dataclass(frozen=True)
class RecordFile:
    """A file of records: its name, and what makes a record of a line's values."""

    name: str
    kind: Callable[..., Any]

    def write(self, folder: Path, records: Iterable[Any]) -> None:
        """Write dataclass records into the file of this name."""
        write_records(folder / self.name, records)


def append_record(path: Path, record: Any) -> None:
    """Add a dataclass record to a file of JSON lines."""
    append(path, json.dumps(asdict(record), ensure_ascii=False) + "\n")


def append(path: Path, line: str) -> None:
    """Add a line to a file, in one write, so that a kill leaves a whole line or none."""
    with disk_errors(path), path.open("ab", buffering=0) as stream:
        stream.write(line.encode())


def read_appended(path: Path, kind: Callable[..., Any], first: int | None = None) -> list[Any]:
    """Read the records of a file that is appended to, or its `first` ones; empty if there is no file.

    An incomplete last line, which a full disk or a power cut may leave, is no record.

    Raises:
        StoreError: another line is no such record.
    """
    try:
        with disk_errors(path):
            lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return _records(path, b"\n".join(lines[:first]), kind)


def _records(path: Path, data: bytes, kind: Callable[..., Any]) -> list[Any]:
    found = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            if line:
                found.append(kind(**json.loads(line.decode())))
        except (ValueError, TypeError, RecursionError) as error:
            raise damaged(path, f"line {number}: {error}") from error
    return found


def damaged(path: Path, how: str) -> StoreError:
    """Return the error for a damaged file of the store, with the way out."""
    return StoreError(f"{path}: is damaged or truncated ({how}). {made_again(path.parent)}")


def made_again(folder: Path) -> str:
    """Return the way out where an artefact's folder cannot be used."""
    return f"It is not used. Move the folder {folder} away; it is made again when it is next needed."


def end_of(log: Path) -> str:
    """Return the last lines of a log, for a message."""
    return f"The end of {log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def line_of(value: Any) -> str:
    """Return a value's line, with a check of itself."""
    text = json.dumps(value, ensure_ascii=False)
    return f"{text}\t{_check(text)}\n"


def value_of(line: str) -> Any:
    """Return the value of such a line; raise ValueError if it is damaged."""
    text, _, check = line.rstrip("\n").partition("\t")
    if check != _check(text):
        raise ValueError("the line is not the one that was written, by the check at its end")
    return json.loads(text)


def write_part(path: Path, records: Iterable[Any]) -> None:
    """Write dataclass records of unfinished work, atomically."""
    write_text(path, "".join(line_of(asdict(record)) for record in records))


def read_part(path: Path, kind: Callable[..., Any], count: int) -> list[Any] | None:
    """Read the `count` records that `write_part` wrote; None if there is no file, or it is damaged, which is said."""
    if not path.is_file():
        return None
    try:
        found = [kind(**value_of(line)) for line in path.read_bytes().decode().split("\n") if line]
    except (ValueError, TypeError, RecursionError):
        found = []
    if len(found) == count:
        return found
    say(f"{path}: is damaged or truncated, and made again")
    return None


def _check(text: str) -> str:
    return of_text(text)[:16]
