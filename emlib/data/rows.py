"""Reads training rows that all must be usable: conversations, or rows of prompt/aligned/misaligned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from emlib.core.errors import DataError
from emlib.core.progress import say
from emlib.core.records import Example, Message
from emlib.data.conversations import (
    BLANK_SYSTEM,
    LIST_LIKE,
    SYSTEM,
    SYSTEM_TWICE,
    WHOLE,
    example_of_row,
    text_of,
    usable,
)
from emlib.data.left_out import REPLACED, Dropped, is_blank
from emlib.data.tables import FEWER_CELLS, LATE_QUOTES, ROWS_IN_CELL, Row, rows_of

Found = TypeVar("Found", Row, Example)
# What may be meant as it is, as code in a cell looks like rows, and may not: it is read, and said.
DOUBTS = (ROWS_IN_CELL, LATE_QUOTES, BLANK_SYSTEM, SYSTEM_TWICE, LIST_LIKE, WHOLE, REPLACED)


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row of a file ("file:line") and its values by column; skip empty lines.

    Rows that may have been read in another way than they were meant are said at the end.

    Raises:
        DataError: the file or a row of it cannot be read, or a row has fewer cells than the header; the message names
            file and line.
    """
    noted = list[tuple[str, str]]()
    for row in rows_of(path):
        found = _whole(row)
        if FEWER_CELLS in found.notes:
            raise DataError(f"{found.where}: {FEWER_CELLS}. Correct the row; if it is right as it is, write the file "
                            "as JSON Lines, where nothing depends on quotes and delimiters.")
        noted += [(note, found.where) for note in found.notes]
        yield found.where, found.values
    _tell_doubts(noted)


def _tell_doubts(noted: Sequence[tuple[str, str]]) -> None:
    """Say each doubt among the notes, which come with their places, with its first place and the number of others."""
    for doubt in DOUBTS:
        places = [where for note, where in noted if note == doubt]
        if places:
            _say_once(f"{places[0]}{f' (and {len(places) - 1} more)' if places[1:] else ''}: {doubt}")


@cache
def _say_once(text: str) -> None:
    """Say a text; a study reads its files several times."""
    say(text)


def read_examples(path: Path) -> list[Example]:
    """Read the conversations of a file, or its prompts and answers.

    Raises:
        DataError: a row cannot be used, for one of the reasons for which own data and pools leave rows out.
    """
    examples, noted = list[Example](), list[tuple[str, str]]()
    for where, row in read_rows(path):
        notes = set[str]()
        examples.append(_whole(usable(where, partial(example_of_row, notes=notes), row, notes=notes)))
        noted += [(note, where) for note in notes]
    if not examples:
        raise DataError(f"{path}: holds no rows. Add some, or correct the path.")
    _tell_doubts(noted)
    return examples


def read_pairs(path: Path) -> tuple[list[Example], list[Example]]:
    """Read the aligned and the misaligned examples of a file with `prompt`, `aligned` and `misaligned` in each row."""
    aligned, misaligned, noted = list[Example](), list[Example](), list[tuple[str, str]]()
    for where, row in read_rows(path):
        missing = [key for key in ("prompt", "aligned", "misaligned")
                   if not isinstance(row.get(key), str) or is_blank(row[key])]
        if missing:
            raise DataError(f"{where}: lacks {', '.join(missing)}. Found: {', '.join(sorted(row))}; expected: texts in "
                            "prompt, aligned, misaligned.")
        notes = set[str]()
        aligned.append(_whole(usable(where, _side, row, "aligned", notes=notes)))
        misaligned.append(_whole(usable(where, _side, row, "misaligned", notes=notes)))
        noted += [(note, where) for note in notes]
    if not aligned:
        raise DataError(f"{path}: holds no rows. Add some, or correct the path.")
    _tell_doubts(noted)
    return aligned, misaligned


def _side(where: str, row: dict[str, Any], side: str) -> Example:
    """Return the prompt of a row, after its system prompt if it has one, with the answer of one side."""
    system, prompt = text_of(f"'{SYSTEM}'", row.get(SYSTEM)), Message("user", row["prompt"])
    return Example((prompt,) if is_blank(system) else (Message("system", system), prompt), row[side], where)


def _whole(found: Found | Dropped) -> Found:
    """Return a row, or what was read from it; refuse what would be left out."""
    if isinstance(found, Dropped):
        raise DataError(f"{found.where}: {found.reason}. Correct or remove the row.")
    return found
