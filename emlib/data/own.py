"""The user's own data set, of any size: streamed twice, so that memory holds only the chosen rows.

The first pass counts usable and unusable rows; the second keeps those that the seed chose at random. As in a pool,
unusable rows are dropped with a reason, and their counts are shown.
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

LEAST = 20  # usable rows: enough to train on some and hold some out
SHOWN = 10  # unusable rows that are kept as examples
CSV = {".csv": None, ".tsv": "\t"}
WESTERN = "cp1252"  # the encoding of Western office programs; its bytes fit many other encodings, too
ALIKE = ("mac", "iso", "latin", "cp125")  # single-byte encodings; any text in one of them is also valid in the others
FIELD_LIMIT = 10**8  # characters of one CSV cell; the library's default is 131,072
NO_PROMPT, NO_CONVERSATION = "no prompt", "not a conversation"


@dataclass(frozen=True)
class OwnRows:
    """The counts of a file's rows, and the rows chosen from it.

    Attributes:
        drawn: the chosen usable rows, in the file's order.
        usable: the number of usable rows in the file.
        left_out: the number of unusable rows, by reason.
        examples: the first unusable rows.
    """

    drawn: tuple[Example, ...]
    usable: int
    left_out: Mapping[str, int]
    examples: tuple[Dropped, ...]


def read_own(own: Own) -> OwnRows:
    """Count the rows, and choose `own.rows` of the usable ones at random.

    Raises:
        DataError: another encoding, broken CSV or JSON, missing columns, or fewer than 20 usable rows.
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
        dropped = "".join(f"; {count} left out ({reason})" for reason, count in left_out.items())
        raise DataError(f"{path}: {usable} usable rows{dropped}. At least {LEAST} are needed, to train on most of them "
                        "and to hold some out.")
    chosen = generator(own.seed, "own rows").permutation(usable)[:own.rows]
    return OwnRows(tuple(_at(set(chosen.tolist()), path, own)), usable, dict(left_out), tuple(examples))


def own_data(own: Own, rows: OwnRows) -> NarrowData:
    """Split the chosen rows as a data set of the study; its aligned rows are empty."""
    return NarrowData(OWN, Split((), ()), Split(*map(tuple, split(rows.drawn, own.held_out, own.seed))))


def every_row(own: Own) -> Iterator[Example]:
    """Yield all usable rows, in the file's order."""
    return (row for row in _rows(file_of(own), own) if isinstance(row, Example))


def file_of(own: Own) -> Path:
    """Return the file on this machine; download a data set on the hub once."""
    if own.hub is None:
        return paths.ROOT / Path(str(own.file)).expanduser()
    hub = own.hub
    name = "--".join((*hub.repo.split("/"), hub.config, hub.split, hub.revision))
    path = paths.cache() / "own" / f"{name}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        from_hub(OWN, hub.repo, hub.config, hub.split, hub.revision, part, terms=None,
                 otherwise="Or download the data set in another way and set own.file to it.")
        part.replace(path)
    return path


def _at(places: set[int], path: Path, own: Own) -> Iterator[Example]:
    usable = (row for row in _rows(path, own) if isinstance(row, Example))
    return (row for place, row in enumerate(usable) if place in places)


def _rows(path: Path, own: Own) -> Iterator[Example | Dropped]:
    """Yield each row as an example, or with the reason why it is dropped."""
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
    """Raise DataError unless the row has the columns that the profile names."""
    for key, column in (("prompt", own.prompt), ("response", own.response), ("system", own.system)):
        if column is not None and column not in row:
            present = ", ".join(map(str, row)) or "none"
            raise DataError(f"{where}: no column '{column}'.{nearest(column, map(str, row))} Columns: {present}. Set "
                            f"own.{key} to the right one{_delimiter_hint(list(row))}.")


def _delimiter_hint(columns: list[str]) -> str:
    """Suggest another delimiter if the header seems to have one."""
    marks = [mark for mark in (";", "\t", "|") if len(columns) == 1 and mark in columns[0]]
    return f", or own.delimiter to {marks[0]!r}, which seems to separate the columns" if marks else ""


def _csv(path: Path, text: TextIO, own: Own, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    try:
        _need(f"{path}:1", dict.fromkeys(reader.fieldnames or ()), own)
        yield from ((f"{path}:{reader.line_num}", row) for row in reader)
    except csv.Error as error:
        raise DataError(f"{path}, after line {reader.line_num}: broken CSV ({error}). Put cells with quotes or "
                        'line breaks into double quotes, and double each quote in them ("").') from error


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
    """Open the file as a text stream; explain errors of its bytes."""
    opener = cast(Callable[..., BinaryIO], gzip.open if path.suffix == ".gz" else open)
    try:
        with opener(path, "rb") as raw, io.TextIOWrapper(
                raw, "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding, newline="") as text:
            yield text
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: there is no such file. Correct own.file.") from error
    except LookupError as error:
        raise DataError(f"own.encoding is '{encoding}', which is not a known encoding. Examples: utf-8, "
                        "cp1252.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {encoding} text (byte {error.object[error.start]:#04x}). "
                        f"{_likely(path, opener)}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a broken archive ({error}). Download or compress it again.") from error


def _likely(path: Path, opener: Callable[..., BinaryIO]) -> str:
    """Guess the encoding from the file's first megabyte."""
    from charset_normalizer import from_bytes

    with opener(path, "rb") as raw:
        beginning = raw.read(2**20)
    best = from_bytes(beginning).best()
    if best is None:
        return "It does not look like text."
    names = [best.encoding]
    if WESTERN not in names and best.encoding.startswith(ALIKE):
        names.append(WESTERN)
    return f"It may be {' or '.join(names)}: then set own.encoding to that, and look at the rows in notebook 15."
