"""SHA-256 digests of files (their bytes) and of values (their canonical JSON), and the keys of artefacts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1  # the format of keys, and so of the store: raise it to invalidate every key


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_value(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON: equal values have equal digests."""
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value: sorted keys, in UTF-8."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def key_of(stage: str, settings: Mapping[str, Any]) -> str:
    """Return an artefact's name: 16 hex digits of the SHA-256 of its stage and settings, in canonical JSON."""
    return of_value([FORMAT, stage, settings])[:16]
