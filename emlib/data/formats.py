"""The format of a source: from its registry, or detected from the first row of a file without an entry."""

from __future__ import annotations

from pathlib import Path

from emlib.core.errors import DataError
from emlib.data.left_out import Dropped
from emlib.data.sources import entry_of, is_local, locate
from emlib.data.tables import CONVERSATIONS, rows_of

# Formats and the keys by which their rows are recognised; the first match counts.
KEYS = (("questions", ("id", "paraphrases")), *(("messages", (key,)) for key in CONVERSATIONS),
        ("pairs", ("prompt", "aligned", "misaligned")), ("wildguard", ("prompt", "response", "prompt_harm_label")),
        ("instruct", ("instruction", "output")), ("squad", ("context", "question")), ("squad", ("paragraphs",)),
        ("messages", ("prompt", "response")), ("messages", ("prompt", "completion")), ("text", ("text",)))


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
    """Detect the format of a file from its first row that can be read; raise DataError if none fits."""
    if is_yaml_file(path):
        return "questions"  # Betley et al.'s format
    if is_document(path):
        return "text"
    row = next((row.values for row in rows_of(path) if not isinstance(row, Dropped)), {})
    found = next((form for form, keys in KEYS if all(key in row for key in keys)), None)
    if found is None:
        known = "; ".join(f"{form} ({', '.join(keys)})" for form, keys in KEYS)
        raise DataError(f"{path}: its first row has the keys {', '.join(sorted(row)) or 'none'}, which fit no known "
                        f"format. Expected one of {known}.")
    return found


def is_document(path: Path) -> bool:
    """Return whether a file is one plain text, by the ending of its name in any case."""
    return path.suffix.lower() == ".txt"


def is_yaml_file(path: Path) -> bool:
    """Return whether a file is YAML, compressed or not, by the ending of its name in any case."""
    return bool({".yaml", ".yml"} & {ending.lower() for ending in path.suffixes[-2:]})
