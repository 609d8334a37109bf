"""Atomic writing of files and folders, and records as JSON lines."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from emlib.core.errors import StoreError


@contextmanager
def disk_errors(path: Path, mover: str = "EMLIB_RUNS_DIR") -> Iterator[None]:
    """Explain a full or read-only disk, and name the variable that moves `path`; re-raise any other error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports the system's error in its message, "... (os error 28)"
        reported = re.search(r"os error (\d+)", str(error))
        code = error.errno if isinstance(error, OSError) else int(reported[1]) if reported else None
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{path}: no space is left on the disk. Make room, or set {mover} to a folder elsewhere, "
                             "and start again: finished work is kept.") from error
        if code in (errno.EACCES, errno.EROFS):
            raise StoreError(f"{getattr(error, 'filename', None) or path}: cannot be written (read-only, or owned "
                             f"by somebody else). Fix that, or set {mover} to a folder elsewhere.") from error
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end; after an error `path` is unchanged."""
    aside = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_native_id()}{path.suffix}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` at the end; after an error `path` is unchanged."""
    aside, old = (path.with_name(f".{path.name}.{os.getpid()}{end}") for end in ("", ".old"))
    with disk_errors(path):
        aside.mkdir(parents=True)
        try:
            yield aside
            if path.exists():
                os.replace(path, old)
            os.replace(aside, path)
        finally:
            for leftover in (aside, old):
                shutil.rmtree(leftover, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with whole_file(path) as aside, aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Write dataclass records as JSON lines."""
    write_text(path, "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records))


def read_records(path: Path, kind: Callable[..., Any]) -> list[Any]:
    """Read the records that `write_records` wrote."""
    return [kind(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
