"""The format of a source: from its registry, or detected from the first row of a file without an entry."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from emlib.core.errors import DataError
from emlib.data.rows import read_jsonl, read_text
from emlib.data.sources import entry_of, is_local, locate

# Formats and the keys by which their rows are recognised; the first match counts.
KEYS = (("questions", ("id", "paraphrases")), ("messages", ("messages",)),
        ("pairs", ("prompt", "aligned", "misaligned")), ("wildguard", ("prompt", "response", "prompt_harm_label")),
        ("instruct", ("instruction", "output")), ("squad", ("context", "question")))


def format_of(source: str) -> str:
    """Return the format of a source's rows; for an unknown name `messages`, because `fetch` reports such names.

    Raises:
        DataError: no registry describes the file, and its first row has no known format.
    """
    if is_local(source):
        return detected_format(locate(source))
    entry = entry_of(source)
    return "messages" if entry is None else entry.format


def detected_format(path: Path) -> str:
    """Detect the format of a file from its first row.

    Raises:
        DataError: no format fits.
    """
    if {".yaml", ".yml"} & set(path.suffixes):
        return "questions"  # Betley et al.'s format
    row = _first(path)
    found = next((form for form, keys in KEYS if all(key in row for key in keys)), None)
    if found is None and isinstance(row.get("data"), list):
        return "squad"
    if found is None:
        known = "; ".join(f"{form} ({', '.join(keys)})" for form, keys in KEYS)
        raise DataError(f"{path}: its first row has the keys {', '.join(sorted(row)) or 'none'}, which fit no known "
                        f"format. Expected one of {known}.")
    return found


def _first(path: Path) -> dict[str, Any]:
    """Return the first row of JSON Lines, the first item of a JSON list, or the single object of a file."""
    if ".json" in path.suffixes:
        try:
            data = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}.") from error
        first = data[0] if isinstance(data, list) and data else data
        return first if isinstance(first, dict) else {}
    return next((row for _, row in islice(read_jsonl(path), 1)), {})
