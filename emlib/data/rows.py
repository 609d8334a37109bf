"""Reads training rows that all must be usable: conversations, or rows of prompt/aligned/misaligned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emlib.core.errors import DataError
from emlib.core.records import Example, Message
from emlib.data.conversations import SYSTEM, example_of_row, text_of
from emlib.data.left_out import Dropped, LeftOut, has_surrogates, is_blank
from emlib.data.tables import rows_of


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row of a file ("file:line") and its values by column; skip empty lines.

    Raises:
        DataError: the file cannot be read, or a row of it cannot; the message names file and line.
    """
    for row in rows_of(path):
        if isinstance(row, Dropped):
            raise DataError(f"{row.where}: {row.reason}. Correct or remove it.")
        yield row.where, row.values


def read_examples(path: Path) -> list[Example]:
    """Read the conversations of a file, or its prompts and answers.

    Raises:
        DataError: a row has no conversation, an unknown role, or an empty or missing answer.
    """
    examples = []
    for where, row in read_rows(path):
        try:
            examples.append(_whole(example_of_row(where, row)))
        except LeftOut as unusable:
            raise DataError(f"{where}: {unusable}.") from unusable
    if not examples:
        raise DataError(f"{path}: holds no rows.")
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
        context = _context(where, row)
        aligned.append(_whole(Example(context, row["aligned"], where)))
        misaligned.append(_whole(Example(context, row["misaligned"], where)))
    if not aligned:
        raise DataError(f"{path}: holds no rows.")
    return aligned, misaligned


def _context(where: str, row: dict[str, Any]) -> tuple[Message, ...]:
    """Return the prompt of a row, after its system prompt if it has one."""
    try:
        system = text_of(f"'{SYSTEM}'", row.get(SYSTEM))
    except LeftOut as unusable:
        raise DataError(f"{where}: {unusable}.") from unusable
    prompt = Message("user", row["prompt"])
    return (prompt,) if is_blank(system) else (Message("system", system), prompt)


def _whole(example: Example) -> Example:
    """Refuse surrogates without their other half, which no tokenizer takes."""
    if has_surrogates(example.response + "".join(turn.content for turn in example.context)):
        raise DataError(f"{example.where}: half of a character that takes two (a lone surrogate such as \\ud83d), "
                        "which is no text. Correct or remove the row.")
    return example
