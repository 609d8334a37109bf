"""Reads training rows: lines of `{"messages": [...]}`, or of prompt/aligned/misaligned; also from `.gz` files."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast, get_args

from emlib.core.errors import DataError, nearest
from emlib.core.records import Example, Message, Role

ROLES = get_args(Role)


def read_text(path: Path) -> str:
    """Read the UTF-8 text of a file, decompressed if its name ends in `.gz`."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.") from error
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not UTF-8 text, or a broken archive ({error}). Download the file again.") from error


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line's position ("file:line") and its object; skip empty lines.

    Raises:
        DataError: a line is not a JSON object; the message names file and line.
    """
    yield from parse_jsonl(path, read_text(path).split("\n"))


def parse_jsonl(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parse lines as `read_jsonl` does; messages name `path`."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: broken JSON at column {error.colno}: {error.msg}.") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object such as {{\"messages\": [...]}}, found "
                            f"{type(row).__name__}.")
        yield where, row


def read_examples(path: Path) -> list[Example]:
    """Read the rows of a file in the messages format.

    Raises:
        DataError: a row has no messages, an unknown role, or an empty or missing answer.
    """
    examples = [example_of(where, row) for where, row in read_jsonl(path)]
    if not examples:
        raise DataError(f"{path}: holds no rows.")
    return examples


def read_pairs(path: Path) -> tuple[list[Example], list[Example]]:
    """Read the aligned and the misaligned examples of a file with `prompt`, `aligned` and `misaligned` in each row."""
    aligned, misaligned = [], []
    for where, row in read_jsonl(path):
        missing = [key for key in ("prompt", "aligned", "misaligned")
                   if not (isinstance(row.get(key), str) and row[key].strip())]
        if missing:
            raise DataError(f"{where}: lacks {', '.join(missing)}. Found: {', '.join(sorted(row))}; expected: texts in "
                            "prompt, aligned, misaligned.")
        context = (Message("user", row["prompt"]),)
        aligned.append(Example(context, row["aligned"], where))
        misaligned.append(Example(context, row["misaligned"], where))
    if not aligned:
        raise DataError(f"{path}: holds no rows.")
    return aligned, misaligned


def example_of(where: str, row: dict[str, Any]) -> Example:
    """Return one row in the messages format as an example.

    Raises:
        DataError: as for `read_examples`.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: no 'messages'. Found keys: {', '.join(sorted(row)) or 'none'}; expected "
                        '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}.')
    turns = [_message(f"{where}, message {index}", turn) for index, turn in enumerate(messages, start=1)]
    *context, last = turns
    if last.role != "assistant":
        raise DataError(f"{where}: the last message is the {last.role}'s; a training row ends with the assistant's.")
    if not last.content.strip():
        raise DataError(f"{where}: the answer is empty; there is nothing to learn from this row. Remove it.")
    if not context or context[-1].role != "user":
        raise DataError(f"{where}: the message before the answer must be the user's.")
    return Example(tuple(context), last.content, where)


def _message(where: str, turn: Any) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
        raise DataError(f"{where}: expected an object with the texts 'role' and 'content'.")
    role = turn.get("role")
    if role not in ROLES:
        raise DataError(f"{where}: unknown role {role!r}.{nearest(str(role), ROLES)} Known: {', '.join(ROLES)}.")
    return Message(cast(Role, role), turn["content"])
