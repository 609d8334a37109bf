"""Reads training rows that all must be usable: conversations, or rows of prompt/aligned/misaligned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from emlib.core.errors import DataError
from emlib.core.records import Example, Message
from emlib.data.conversations import SYSTEM, example_of_row, text_of, usable
from emlib.data.left_out import Dropped, is_blank
from emlib.data.tables import FEWER_CELLS, LATE_QUOTES, ROWS_IN_CELL, Row, rows_of

Found = TypeVar("Found", Row, Example)
DOUBTS = (FEWER_CELLS, LATE_QUOTES, ROWS_IN_CELL)  # what own data and pools only note


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row of a file ("file:line") and its values by column; skip empty lines.

    Raises:
        DataError: the file or a row of it cannot be read, or was most likely read in another way than it was meant; the
            message names file and line.
    """
    for row in rows_of(path):
        found = _whole(row)
        doubts = [note for note in DOUBTS if note in found.notes and not (note == ROWS_IN_CELL and _is_prose(found))]
        if doubts:
            raise DataError(f"{found.where}: {doubts[0]}. Correct the row; if it is right as it is, write the file as "
                            "JSON Lines, where nothing depends on quotes and delimiters.")
        yield found.where, found.values


def _is_prose(row: Row) -> bool:
    """Return whether lines in a cell look like rows by the commas of sentences alone, with a blank behind them."""
    return all(", " in cell for cell in row.values.values() if cell and "\n" in cell)


def read_examples(path: Path) -> list[Example]:
    """Read the conversations of a file, or its prompts and answers.

    Raises:
        DataError: a row cannot be used, for one of the reasons for which own data and pools leave rows out.
    """
    examples = [_whole(usable(where, example_of_row, row)) for where, row in read_rows(path)]
    if not examples:
        raise DataError(f"{path}: holds no rows. Add some, or correct the path.")
    return examples


def read_pairs(path: Path) -> tuple[list[Example], list[Example]]:
    """Read the aligned and the misaligned examples of a file with `prompt`, `aligned` and `misaligned` in each row."""
    aligned, misaligned = [], []
    for where, row in read_rows(path):
        missing = [key for key in ("prompt", "aligned", "misaligned")
                   if not isinstance(row.get(key), str) or is_blank(row[key])]
        if missing:
            raise DataError(f"{where}: lacks {', '.join(missing)}. Found: {', '.join(sorted(row))}; expected: texts in "
                            "prompt, aligned, misaligned.")
        aligned.append(_whole(usable(where, _side, row, "aligned")))
        misaligned.append(_whole(usable(where, _side, row, "misaligned")))
    if not aligned:
        raise DataError(f"{path}: holds no rows. Add some, or correct the path.")
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
