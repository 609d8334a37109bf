"""In which form a source is written: as its registry says, or as the first row of a file shows that none describes."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from emlib.core.errors import DataError
from emlib.data.rows import read_jsonl, read_text
from emlib.data.sources import entry_of, is_local, locate

# A form, and the keys by which its rows are known; the first that fits.
KEYS = (("questions", ("id", "paraphrases")), ("messages", ("messages",)),
        ("pairs", ("prompt", "aligned", "misaligned")), ("wildguard", ("prompt", "response", "prompt_harm_label")),
        ("instruct", ("instruction", "output")), ("squad", ("context", "question")))


def format_of(source: str) -> str:
    """The form of a source's rows. An unknown name is called messages: whoever fetches it is told that it is unknown.

    Raises:
        DataError: no registry describes the file, and its first row is of no known form.
    """
    if is_local(source):
        return seen(locate(source))
    entry = entry_of(source)
    return "messages" if entry is None else entry.format


def seen(path: Path) -> str:
    """The form that the first row of a file shows.

    Raises:
        DataError: none does.
    """
    if {".yaml", ".yml"} & set(path.suffixes):
        return "questions"  # Betley et al.'s form
    row = _first(path)
    found = next((form for form, keys in KEYS if all(key in row for key in keys)), None)
    if found is None and isinstance(row.get("data"), list):
        return "squad"
    if found is None:
        known = "; ".join(f"{form} ({', '.join(keys)})" for form, keys in KEYS)
        raise DataError(f"{path}: its first row has the keys {', '.join(sorted(row)) or 'none'}, by which no form of "
                        f"data is known. Expected one of {known}.")
    return found


def _first(path: Path) -> dict[str, Any]:
    """The first row of JSON Lines, the first of one JSON list, or the one object that a file holds."""
    if ".json" in path.suffixes:
        try:
            data = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}.") from error
        first = data[0] if isinstance(data, list) and data else data
        return first if isinstance(first, dict) else {}
    return next((row for _, row in islice(read_jsonl(path), 1)), {})
