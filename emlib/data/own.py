"""The reader's own data set, of whatever size: read as a stream, twice, so that only the rows drawn are ever held.

The first pass tells the usable rows from the others and counts both; the second takes those that the seed has drawn. As
with a pool, a row that cannot be used is left out with its reason, and the counts are shown.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from emlib.config import OWN, Own
from emlib.core import paths
from emlib.core.errors import DataError, nearest
from emlib.core.records import Example, Message
from emlib.core.seeds import generator
from emlib.data.domains import NarrowData, Split, split
from emlib.data.download import from_hub
from emlib.data.pools import BROKEN, NO_ANSWER, REPLACEMENT, Dropped
from emlib.data.rows import example_of, parse_jsonl

LEAST = 20  # usable rows, to train on some and hold some out
SHOWN = 10  # unusable rows that are kept for showing
CSV = {".csv": None, ".tsv": "\t"}
WESTERN = "cp1252"  # what office programs of the West write; its bytes fit many other encodings, too
ALIKE = ("mac", "iso", "latin", "cp125")  # of one byte a letter; any text of one is a text of the others
FIELD_LIMIT = 10**8  # characters of one CSV cell; the library's own limit is 131,072
NO_PROMPT, NO_CONVERSATION = "no prompt", "not a conversation"


@dataclass(frozen=True)
class OwnRows:
    """What a file holds, and the rows drawn from it.

    Attributes:
        drawn: usable rows, in the file's order.
        usable: how many the file holds.
        left_out: how many rows could not be used, by reason.
        examples: the first of them.
    """

    drawn: tuple[Example, ...]
    usable: int
    left_out: Mapping[str, int]
    examples: tuple[Dropped, ...]


def read_own(own: Own) -> OwnRows:
    """Count the rows and draw `own.rows` of the usable ones.

    Raises:
        DataError: another encoding, broken CSV or JSON, columns that are not there, fewer than 20 usable rows.
    """
    path = file_of(own)
    usable, left_out, examples = 0, Counter[str](), list[Dropped]()
    for row in _rows(path, own):
        if isinstance(row, Example):
            usable += 1
        else:
            left_out[row.reason.partition(":")[0]] += 1
            examples += [row] if len(examples) < SHOWN else []
    if usable < LEAST:
        why = "".join(f"; {count} left out ({reason})" for reason, count in left_out.items())
        raise DataError(f"{path}: {usable} usable rows{why}. At least {LEAST} are needed, to train on most of them and "
                        "to hold some out.")
    chosen = generator(own.seed, "own rows").permutation(usable)[:own.rows]
    return OwnRows(tuple(_at(set(chosen.tolist()), path, own)), usable, dict(left_out), tuple(examples))


def own_data(own: Own, rows: OwnRows) -> NarrowData:
    """The drawn rows, split, as a data set of the study; its aligned side is empty."""
    return NarrowData(OWN, Split((), ()), Split(*map(tuple, split(rows.drawn, own.held_out, own.seed))))


def every_row(own: Own) -> Iterator[Example]:
    """All usable rows, in the file's order, one at a time."""
    return (row for row in _rows(file_of(own), own) if isinstance(row, Example))


def file_of(own: Own) -> Path:
    """The file on this machine; a data set of the hub is fetched once."""
    if own.hub is None:
        return paths.ROOT / Path(str(own.file)).expanduser()
    hub = own.hub
    name = "--".join((*hub.repo.split("/"), hub.config, hub.split, hub.revision))
    path = paths.cache() / "own" / f"{name}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        from_hub(OWN, hub.repo, hub.config, hub.split, hub.revision, part, terms=None,
                 otherwise="Or download the data set by other means and name it as own.file.")
        part.replace(path)
    return path


def _at(places: set[int], path: Path, own: Own) -> Iterator[Example]:
    usable = (row for row in _rows(path, own) if isinstance(row, Example))
    return (row for place, row in enumerate(usable) if place in places)


def _rows(path: Path, own: Own) -> Iterator[Example | Dropped]:
    """Each row as an example, or why it cannot be one."""
    with _opened(path, own.encoding) as text:
        ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        objects = (_csv(path, text, own, CSV[ending] or own.delimiter) if ending in CSV else
                   parse_jsonl(path, map(str.rstrip, text)))
        for where, row in objects:
            found = _conversation(where, row) if "messages" in row else _columns(where, row, own)
            broken = isinstance(found, Example) and REPLACEMENT in found.response + found.prompt
            yield Dropped(where, BROKEN) if broken else found


def _conversation(where: str, row: dict[str, Any]) -> Example | Dropped:
    try:
        return example_of(where, row)
    except DataError as error:
        return Dropped(where, f"{NO_CONVERSATION}: {error}")


def _columns(where: str, row: dict[str, Any], own: Own) -> Example | Dropped:
    _need(where, row, own)
    prompt, response = (str(row[column] or "").strip() for column in (own.prompt, own.response))
    if not (prompt and response):
        return Dropped(where, NO_ANSWER if prompt else NO_PROMPT)
    system = str(row.get(own.system) or "").strip() if own.system else ""
    context = ([Message("system", system)] if system else []) + [Message("user", prompt)]
    return Example(tuple(context), response, where)


def _need(where: str, row: Mapping[str, Any], own: Own) -> None:
    """Raise unless the columns that the profile names are there."""
    for key, column in (("prompt", own.prompt), ("response", own.response), ("system", own.system)):
        if column is not None and column not in row:
            there = ", ".join(map(str, row)) or "none"
            raise DataError(f"{where}: no column '{column}'.{nearest(column, map(str, row))} Columns: {there}. Say in "
                            f"own.{key} which one it is" + _apart(list(row)) + ".")


def _apart(columns: list[str]) -> str:
    """A hint, where the header looks as if something else stood between its columns."""
    marks = [mark for mark in (";", "\t", "|") if len(columns) == 1 and mark in columns[0]]
    return f", or in own.delimiter that columns are set apart by {marks[0]!r}" if marks else ""


def _csv(path: Path, text: TextIO, own: Own, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    try:
        _need(f"{path}:1", dict.fromkeys(reader.fieldnames or ()), own)
        yield from ((f"{path}:{reader.line_num}", row) for row in reader)
    except csv.Error as error:
        raise DataError(f"{path}, after line {reader.line_num}: broken CSV ({error}). A cell with quotes or line "
                        'breaks has to stand in double quotes, and a quote in it is written twice ("").') from error


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
    """The file's text as a stream; what its bytes do wrong is told in words."""
    opener = cast(Callable[..., BinaryIO], gzip.open if path.suffix == ".gz" else open)
    try:
        with opener(path, "rb") as raw, io.TextIOWrapper(
                raw, "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding, newline="") as text:
            yield text
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: there is no such file. It is named in own.file.") from error
    except LookupError as error:
        raise DataError(f"own.encoding is '{encoding}', which is no encoding. Examples: utf-8, cp1252.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {encoding} text (byte {error.object[error.start]:#04x}). "
                        f"{_likely(path, opener)}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a broken archive ({error}). Fetch or pack it again.") from error


def _likely(path: Path, opener: Callable[..., BinaryIO]) -> str:
    """What the encoding may be, by the file's first megabyte."""
    from charset_normalizer import from_bytes

    with opener(path, "rb") as raw:
        beginning = raw.read(2**20)
    best = from_bytes(beginning).best()
    if best is None:
        return "It looks like no text at all."
    names = [best.encoding]
    if WESTERN not in names and best.encoding.startswith(ALIKE):
        names.append(WESTERN)
    return f"It may be {' or '.join(names)}: then set own.encoding to that, and look at the rows in notebook 15."
