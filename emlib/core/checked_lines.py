"""Lines of JSON with a check of themselves, so that a damaged one is found: `<JSON> TAB <16 hex digits>`.

Progress is kept in such lines. What is damaged in them is computed again. JSON itself holds no tab.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emlib.core.digests import of_text
from emlib.core.files import write_text
from emlib.core.progress import say


def line_of(value: Any) -> str:
    """Return a value's line."""
    text = json.dumps(value, ensure_ascii=False)
    return f"{text}\t{_check(text)}\n"


def value_of(line: str) -> Any:
    """Return the value of a line; raise ValueError if it is damaged."""
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
