"""SHA-256 digests of files (their bytes) and of values (their canonical JSON), and the keys of artefacts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FORMAT = 2  # the format of keys, and so of the store: raise it to invalidate every key
SETTLED = 2 * 10**9  # nanoseconds after which a file's times tell whether it changed


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_unchanged_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; a process computes it once for as long as the file is unchanged.

    A file that was just written is read each time: within the resolution of the file system's clock, a second change
    leaves the same time.
    """
    stat = path.stat()
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < SETTLED:
        return of_file(path)
    return _remembered(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=2**14)
def _remembered(path: Path, *_state: int) -> str:
    return of_file(path)


def of_value(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON: equal values have equal digests."""
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value: sorted keys, in UTF-8."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def of_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


class Keyed:
    """The base of values that say themselves which part of them enters a key."""

    @property
    def identity(self) -> Any:
        """The part of it that enters a key, as JSON: what determines results."""
        raise NotImplementedError


def keyed(value: Any) -> Any:
    """Return the part of a value that enters a key, as JSON: its `identity`, or a record's compared fields."""
    if isinstance(value, Keyed):
        return value.identity
    if is_dataclass(value):
        return compared(value)
    if isinstance(value, Mapping):
        return {name: keyed(part) for name, part in value.items()}
    return [keyed(part) for part in value] if isinstance(value, tuple | list) else value


def compared(record: Any) -> dict[str, Any]:
    """Return the fields by which a dataclass compares its records: of each, the part that enters a key."""
    return {field.name: keyed(getattr(record, field.name)) for field in fields(record) if field.compare}


def key_of(stage: str, settings: Mapping[str, Any]) -> str:
    """Return an artefact's name: 16 hex digits of the SHA-256 of its stage and settings, in canonical JSON."""
    return of_value([FORMAT, stage, settings])[:16]
