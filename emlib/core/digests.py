"""What a file or a value is, in a few hex digits: SHA-256 of bytes or of canonical JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1  # of keys, and so of the store; raised when all of them change


def of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_value(value: Any) -> str:
    """The SHA-256 of a value's JSON with sorted keys: equal values, equal digests."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(stage: str, settings: Mapping[str, Any]) -> str:
    """The name of an artefact: 16 hex digits of the SHA-256 of its stage and settings, in canonical JSON."""
    return of_value([FORMAT, stage, settings])[:16]
