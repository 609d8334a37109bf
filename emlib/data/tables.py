"""Reads the rows of any data file: JSON Lines, JSON, CSV or Parquet, each row with its place.

Every reader of data goes through `rows_of`: own data, narrow data sets, pools and question files. A row is a mapping of
column names to values; what its texts mean is decided above (`conversations`, `own`, `pools`).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from emlib.config.words import repeats
from emlib.core.errors import DataError
from emlib.data.left_out import HEADER_AGAIN, MORE_CELLS, Dropped, LeftOut
from emlib.data.opening import Kind, kind_of, opened, opened_bytes, refuse_foreign
from emlib.data.strict_json import parse, parse_document

FIELD_LIMIT = 10**8  # characters of one CSV cell; the library's default is 131,072
FEWER_CELLS = "rows with fewer cells than the header"
UNNAMED_CELLS = "rows with cells under a column without a name, which are not read"
EMPTY_CELLS = "rows with empty cells beyond the header, which are ignored"
ROWS_IN_CELL = "cells of several lines that look like rows: a quote may have been opened and not closed"
LATE_QUOTES = "cells with a blank before an opening quote: the quotes are read as text"
CONVERSATIONS = ("messages", "conversations", "conversation")  # the keys of a conversation
SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's first line, which names the delimiter
PARQUET_ROWS = 1000  # rows that are read at once
BOM = "\ufeff"  # a byte order mark, which stands within a file where files were appended to each other
OBJECT = '{"messages": [...]}'


@dataclass(frozen=True)
class Row:
    """A row as it is in the file: its place, its values by column, and what was noted while reading it."""

    where: str
    values: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """The names of the columns, where a file states them once for all rows."""

    where: str
    columns: tuple[str, ...]


def rows_of(path: Path) -> Iterator[Row | Dropped]:
    """Yield each row of a file, or the reason why it cannot be read.

    Raises:
        DataError: the file is of no known kind or broken, or has a column or a key twice.
    """
    return (row for row in items_of(path) if not isinstance(row, Header))


def items_of(path: Path, encoding: str = "UTF-8", delimiter: str = ",",
             columns: Collection[str] | None = None) -> Iterator[Header | Row | Dropped]:
    """Yield the header, if the file has one, and then each row as `rows_of` does.

    Args:
        path: the file.
        encoding: the encoding of a text file.
        delimiter: the separator of the columns of a `.csv` file.
        columns: the columns that are looked at; None: all. Parquet files may have others that no text could hold.
    """
    kind = kind_of(path)
    if kind == "parquet":
        yield from _parquet(path, columns)
        return
    with opened(path, encoding) as text:
        if kind in ("csv", "tsv"):
            yield from _csv(path, text, "\t" if kind == "tsv" else delimiter)
        else:
            yield from _json(path, text, kind)


# --- JSON

def _json(path: Path, text: IO[str], kind: Kind) -> Iterator[Row | Dropped]:
    """Yield the rows of JSON Lines, or of one JSON document: the content decides, and not the name alone."""
    before: list[str] = []
    first = _next_line(text, before)
    second = _next_line(text, before)
    if _is_document(first, second, kind):
        yield from _document(path, "".join(before) + text.read())
    else:
        yield from _lines(path, chain(before, text))


def _next_line(text: IO[str], before: list[str]) -> str:
    """Return the next line that is not empty, without blanks around it, and add all lines read to `before`."""
    while line := text.readline():
        before.append(line)
        if _bare(line):
            return _bare(line)
    return ""


def _bare(text: str) -> str:
    """Return a text without white space and byte order marks around it."""
    return text.strip().strip(BOM).strip()


def _is_document(first: str, second: str, kind: Kind) -> bool:
    """Return whether a file is one JSON document, by its first two lines that are not empty."""
    if first.startswith("["):
        return not (second and _is_whole(first))
    if kind == "jsonl":
        return first == "{"
    return bool(first) and not (second and _is_whole(first))


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except RecursionError:
        return True  # as far as anybody can tell
    except ValueError:
        return False
    return True


def _lines(path: Path, lines: Iterator[str]) -> Iterator[Row | Dropped]:
    for number, line in enumerate(lines, start=1):
        if not _bare(line):
            continue
        where = f"{path}:{number}"
        try:
            value = parse(where, line.rstrip().lstrip(BOM))
        except LeftOut as unusable:
            yield Dropped(where, str(unusable))
            continue
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object such as {OBJECT}, found {type(value).__name__}.")
        yield Row(where, value)


def _document(path: Path, text: str) -> Iterator[Row]:
    """Yield the items of one JSON list, or of the one list of objects in a JSON object."""
    document = parse_document(path, text)
    for number, item in enumerate(document if isinstance(document, list) else _list_of(path, document), start=1):
        if not isinstance(item, dict):
            raise DataError(f"{path}, row {number}: expected an object such as {OBJECT}, found {type(item).__name__}.")
        yield Row(f"{path}, row {number}", item)


def _list_of(path: Path, document: Any) -> list[Any]:
    """Return the rows of a document that is not a list itself."""
    if isinstance(document, dict) and any(key in document for key in CONVERSATIONS):
        return [document]
    lists = {key: value for key, value in document.items() if isinstance(value, list) and value and all(
        isinstance(item, dict) for item in value)} if isinstance(document, dict) else {}
    if len(lists) != 1:
        found = f"several lists of objects: {', '.join(map(ascii, lists))}" if lists else (
            f"the keys {', '.join(map(ascii, document)) or 'none'}" if isinstance(document, dict) else
            type(document).__name__)
        raise DataError(f"{path}: expected a list of objects, such as [{{\"prompt\": ...}}], or an object with one "
                        f"such list; found {found}.")
    return next(iter(lists.values()))


# --- CSV

def _csv(path: Path, text: IO[str], delimiter: str) -> Iterator[Header | Row | Dropped]:
    csv.field_size_limit(FIELD_LIMIT)
    first = text.readline()
    stated = SEPARATOR.fullmatch(first)
    delimiter = stated[1] if stated else delimiter
    reader = csv.reader(text if stated else chain([first], text), delimiter=delimiter, strict=True)
    skipped, last, header = int(stated is not None), 0, list[str]()
    try:
        for cells in reader:
            last, where = reader.line_num, f"{path}:{reader.line_num + skipped}"
            names = [_bare(cell) for cell in cells]  # blanks around them, and an appended file's mark, are no part
            if not cells:
                continue
            if not header:
                header = names
                _refuse_twice(where, header)
                yield Header(where, tuple(name for name in header if name))
            else:
                yield Dropped(where, HEADER_AGAIN) if names == header else _cells(where, header, cells, delimiter)
    except csv.Error as error:
        raise DataError(f"{path}, after line {last + skipped}: broken CSV ({error}). Put cells with quotes or "
                        'line breaks into double quotes, and double each quote in them ("").') from error


def _cells(where: str, header: Sequence[str], cells: Sequence[str], delimiter: str) -> Row | Dropped:
    """Return one row.

    A cell beyond the last name is most often the rest of a text with an unquoted comma. A column without a name before
    others holds most often the row's number, as pandas writes it.
    """
    named = [cell for name, cell in zip(header, cells, strict=False) if name]
    last = max((place for place, name in enumerate(header) if name), default=-1)
    beyond = cells[last + 1:]
    if any(cell.strip() for cell in beyond):
        return Dropped(where, f"{MORE_CELLS}: {len(cells)} cells under {sum(map(bool, header))} columns. Put texts "
                              "that hold the delimiter into double quotes")
    noted = {FEWER_CELLS: len(cells) <= last,
             UNNAMED_CELLS: any(cell.strip() and not name for name, cell in zip(header, cells, strict=False)),
             EMPTY_CELLS: len(cells) > len(header),
             ROWS_IN_CELL: any(_holds_rows(cell, delimiter, range(last, len(header))) for cell in named),
             LATE_QUOTES: any(map(_is_quoted_late, named))}
    missing = dict.fromkeys(name for name in header if name)
    return Row(where, missing | {name: cell for name, cell in zip(header, cells, strict=False) if name},
               tuple(note for note, holds in noted.items() if holds))


def _holds_rows(cell: str, delimiter: str, counts: range) -> bool:
    """Return whether every further line of a cell has as many delimiters as a row, of which `counts` are possible."""
    _, *others = cell.split("\n")
    return counts.start > 0 and bool(others) and all(line.count(delimiter) in counts for line in others)


def _is_quoted_late(cell: str) -> bool:
    """Return whether a blank stands before the quotes of a cell; one with a line break had others around it."""
    bare = cell.lstrip(" \t")
    return bare != cell and "\n" not in cell and bare.startswith('"') and bare.rstrip().endswith('"')


def _refuse_twice(where: str, columns: Sequence[str]) -> None:
    if twice := repeats([name for name in columns if name]):
        raise DataError(f"{where}: the column {twice[0]!a} is there twice, and it is not clear which one counts. "
                        "Rename or remove one.")


# --- Parquet

def _parquet(path: Path, wanted: Collection[str] | None) -> Iterator[Header | Row]:
    import pyarrow  # takes a moment to load
    import pyarrow.parquet

    with opened_bytes(path) as raw:
        refuse_foreign(path, raw.peek(100), but=b"PAR1")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_twice(str(path), names)
            yield Header(str(path), tuple(names))
            columns = [name for name in names if wanted is None or name in wanted]
            few = of_few_digits(file.schema_arrow)
            values = (as_written(one, few) for batch in file.iter_batches(PARQUET_ROWS, columns=columns)
                      for one in batch.to_pylist())
            yield from (Row(f"{path}, row {number}", one) for number, one in enumerate(values, start=1))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as Parquet ({error}). Download or write it again.") from error


def of_few_digits(schema: Any) -> dict[str, type[np.floating[Any]]]:
    """Return the type of each column of 16- or 32-bit fractions in an Arrow schema, by its name."""
    kinds: dict[str, type[np.floating[Any]]] = {"halffloat": np.float16, "float": np.float32}
    return {column.name: kinds[str(column.type)] for column in schema if str(column.type) in kinds}


def as_written(row: dict[str, Any], few: Mapping[str, type[np.floating[Any]]]) -> dict[str, Any]:
    """Return a row with its fractions as they were written: 0.1 of 32 bits is 0.10000000149011612 in 64."""
    return row | {name: float(str(kind(row[name]))) for name, kind in few.items() if row.get(name) is not None}
