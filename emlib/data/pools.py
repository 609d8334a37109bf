"""General instruction data to interleave: WildGuardMix's benign split, Alpaca's format, conversations (section 3.2).

Pools are large third-party data, so that unusable rows are dropped with a reason instead of stopping the study; a file
that is not text or has no usable rows is an error. Texts are taken as they are, white space at their ends included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from emlib.core.errors import DataError
from emlib.core.records import Example
from emlib.data.conversations import ALPACA, PAIRS, example_of_row, text_of, usable
from emlib.data.formats import is_document
from emlib.data.left_out import NO_ANSWER, NO_COLUMN, Dropped, LeftOut, is_blank
from emlib.data.opening import read_text
from emlib.data.tables import Row, rows_of

PoolForm = Literal["messages", "instruct", "wildguard", "text"]
FORMS = tuple(form for form in get_args(PoolForm) if form != "text")  # those of instruction data
HARMFUL = "not of the benign split"


@dataclass(frozen=True)
class PoolRows:
    """The usable rows of a pool, in the file's order, the dropped rows with their reasons, and what was noted."""

    rows: tuple[Example, ...]
    dropped: tuple[Dropped, ...]
    notes: Counter[str] = field(default_factory=Counter)  # of how many rows each holds


def read_pool(path: Path, form: PoolForm) -> PoolRows:
    """Read the candidates of a file.

    Raises:
        DataError: the file cannot be read, its rows have another format, or none is usable.
    """
    notes = Counter[str]()
    found = list(_examples(path, form, notes))
    rows = tuple(row for row in found if isinstance(row, Example))
    dropped = tuple(row for row in found if isinstance(row, Dropped))
    if dropped and not rows and all(row.counted_as == NO_COLUMN for row in dropped):
        raise DataError(f"{dropped[0].where}: {dropped[0].reason.partition(': ')[2]}. Is the 'format' of this source "
                        "in params/sources.yaml the right one?")
    if not rows:
        reasons = ", ".join(sorted({row.counted_as for row in dropped})) or "the file is empty"
        raise DataError(f"{path}: this pool has no usable row ({reasons}).")
    return PoolRows(rows, dropped, notes)


def _examples(path: Path, form: PoolForm, notes: Counter[str]) -> Iterator[Example | Dropped]:
    for row in [Row(str(path), {"text": read_text(path)})] if is_document(path) else rows_of(path):
        notes.update(row.notes if isinstance(row, Row) else ())
        yield row if isinstance(row, Dropped) else usable(row.where, ROW_OF[form], row.values)


def _wildguard(where: str, row: dict[str, Any]) -> Example:
    """Read a row of WildGuardMix; benign: the prompt is harmless, the answer not harmful. About half have an answer."""
    _need(row, "prompt_harm_label", "response_harm_label")
    if row["prompt_harm_label"] != "unharmful" or row["response_harm_label"] == "harmful":
        raise LeftOut(HARMFUL)
    return example_of_row(where, row, PAIRS)


def _text(where: str, row: dict[str, Any]) -> Example:
    """Read a document of a plain-text corpus, which has no prompt."""
    _need(row, "text")
    text = text_of("'text'", row["text"])
    if is_blank(text):
        raise LeftOut(NO_ANSWER)
    return Example((), text, where)


def _need(row: dict[str, Any], *keys: str) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        raise LeftOut(NO_COLUMN, f"lacks {', '.join(missing)}. Found: {', '.join(sorted(row)) or 'nothing'}")


ROW_OF: dict[PoolForm, Callable[[str, dict[str, Any]], Example]] = {
    "messages": example_of_row, "instruct": partial(example_of_row, forms=(ALPACA,)), "wildguard": _wildguard,
    "text": _text}
