"""Which rows an adapter was trained on, as digests in a file beside it: how a scorer is recognised (section 3.2).

A row's digest is of its turns and its answer, without the system prompt and without outer white space. So it is the
same under every method, inoculation included, and for any number and order of rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from emlib.core.digests import of_value
from emlib.core.files import write_text
from emlib.core.records import Example

FILE = "training_rows.txt"


def digest(row: Example) -> str:
    """Return a row's digest: 16 hex digits."""
    turns = [[turn.role, turn.content.strip()] for turn in row.context if turn.role != "system"]
    return of_value([turns, row.response.strip()])[:16]


def digests_of(rows: Iterable[Example]) -> frozenset[str]:
    """Return the digests of rows."""
    return frozenset(map(digest, rows))


def write(folder: Path, rows: Iterable[Example]) -> None:
    """Write the digests of rows into an adapter's folder, one per line, sorted."""
    write_text(folder / FILE, "".join(f"{one}\n" for one in sorted(digests_of(rows))))


def read(folder: Path) -> frozenset[str] | None:
    """Read what `write` wrote; None if the folder has no such file."""
    path = folder / FILE
    return frozenset(path.read_text(encoding="utf-8").split()) if path.is_file() else None
