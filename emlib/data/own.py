"""The user's own data set, of any size: streamed twice, so that memory holds only the chosen rows (JSON is held whole).

The first pass counts usable and unusable rows; the second keeps those that the seed chose at random. As in a pool,
unusable rows are left out with a reason, and their counts are shown. Texts are taken as they are, white space at their
ends included.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from emlib.config import OWN, Own
from emlib.config.references import PATTERN, matching
from emlib.core import paths
from emlib.core.errors import DataError, nearest
from emlib.core.records import Example, Message
from emlib.core.seeds import generator
from emlib.data.columns import MEDIA_COLUMNS, Reader, column_of, known_columns
from emlib.data.domains import NarrowData, Split, split
from emlib.data.download import from_hub, once
from emlib.data.left_out import BROKEN, MEDIA, NO_PROMPT, Dropped, LeftOut, damage, is_blank
from emlib.data.tables import Header, Row, items_of

LEAST = 20  # usable rows: enough to train on some and hold some out
SHOWN = 5  # places that are kept of each reason and of each note
UNREAD = 20  # names of columns that nobody reads, at most
MARKED = "texts with the turn markers of a chat template"
MARKER = re.compile(r"<\|\w+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_turn>|\[/?(?:INST|SYSTEM_PROMPT)\]|<</?SYS>>|</s>|"
                    r"<(?:bos|eos)>|\[gMASK\]")  # of the templates that are common today
LIKE_MISSING = "prompts or answers such as nan, None or #REF!, which programs write for a missing value"
MISSING = ("nan", "none", "null", "nil", "undefined", "n/a", "#n/a", "<na>", "nat", "#value!", "#ref!", "#name?",
           "#div/0!")  # an answer may mean some of these, so that they are told and not left out
PLACEHOLDERS = "texts with a placeholder such as <image>, which is read as text"
PLACEHOLDER = re.compile(r"<(?:image|video|audio)>")
ENDS = "texts with white space at an end, which is kept"


@dataclass(frozen=True)
class OwnRows:
    """The counts of a file's rows, and the rows chosen from it.

    Attributes:
        drawn: the chosen usable rows, in the file's order.
        usable: the number of usable rows in the file.
        left_out: the number of unusable rows, by reason.
        examples: the first unusable rows of each reason.
        notes: what was noted while reading, each with the number of rows that it holds for.
        noted_at: the places of the first rows of each note.
        unread: columns, and keys of turns, that nobody reads.
    """

    drawn: tuple[Example, ...]
    usable: int
    left_out: Mapping[str, int]
    examples: tuple[Dropped, ...]
    notes: Mapping[str, int] = field(default_factory=dict)
    noted_at: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows in the file."""
        return self.usable + sum(self.left_out.values())


@dataclass
class _Counts:
    """What the first pass counts."""

    usable: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: list[Dropped] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    noted_at: dict[str, list[str]] = field(default_factory=dict)
    unread: dict[str, None] = field(default_factory=dict)

    def add(self, row: Example | Dropped, notes: set[str]) -> None:
        """Count one row."""
        if isinstance(row, Dropped):
            self.left_out[row.counted_as] += 1
            self.examples += [row] if self.left_out[row.counted_as] <= SHOWN else []
        else:
            self.usable += 1
        for note in sorted(notes):
            self.notes[note] += 1
            places = self.noted_at.setdefault(note, [])
            places += [row.where] if len(places) < SHOWN else []


def read_own(own: Own, least: int = LEAST) -> OwnRows:
    """Count the rows, and choose `own.rows` of the usable ones at random.

    Raises:
        DataError: the file cannot be read, lacks a column or has one twice, or fewer than `least` rows are usable.
    """
    counts = _Counts()
    for row, notes in _rows(own, counts.unread):
        counts.add(row, notes)
    if counts.usable < least:
        raise DataError(f"{_name(own)}: {counts.usable} usable rows{_reasons(counts)}." + (
            f" At least {least} are needed, to train on most of them and to hold some out." if least > 1 else ""))
    chosen = generator(own.seed, "own rows").permutation(counts.usable)[:own.rows]
    places = {note: tuple(found) for note, found in counts.noted_at.items()}
    return OwnRows(tuple(_at(set(chosen.tolist()), own)), counts.usable, dict(counts.left_out), tuple(counts.examples),
                   dict(counts.notes), places, tuple(counts.unread))


def own_data(own: Own, rows: OwnRows) -> NarrowData:
    """Split the chosen rows as a data set of the study; its aligned rows are empty."""
    return NarrowData(OWN, Split((), ()), Split(*map(tuple, split(rows.drawn, own.held_out, own.seed))))


def every_row(own: Own) -> Iterator[Example]:
    """Yield all usable rows, in the file's order."""
    return (row for row, _ in _rows(own, {}) if isinstance(row, Example))


def files_of(own: Own) -> list[Path]:
    """Return the files on this machine, those of a pattern in the order of their names; download a hub set once.

    Raises:
        DataError: no file fits the pattern.
    """
    if own.hub is not None:
        return [_of_hub(own)]
    path = paths.ROOT / Path(str(own.file)).expanduser()
    found = matching(path)
    if not found and any(sign in str(own.file) for sign in PATTERN):
        raise DataError(f"{path}: no file fits this pattern. Correct own.file.")
    return found or [path]


def _of_hub(own: Own) -> Path:
    hub = own.hub
    assert hub is not None, "asked only for a set on the hub"
    name = "--".join((*hub.repo.split("/"), hub.config, hub.split, hub.revision))
    path = paths.cache() / "own" / f"{name}.jsonl"
    once(path, partial(from_hub, OWN, hub, terms=None, wanted=known_columns(own),
                       otherwise="Or download the data set in another way and set own.file to it."))
    return path


def _at(places: set[int], own: Own) -> Iterator[Example]:
    return (row for place, row in enumerate(every_row(own)) if place in places)


def _rows(own: Own, unread: dict[str, None]) -> Iterator[tuple[Example | Dropped, set[str]]]:
    """Yield each row of each file as an example, or with the reason why it is left out; and what was noted of it."""
    for path in files_of(own):
        yield from _rows_of(path, own, unread)


def _rows_of(path: Path, own: Own, unread: dict[str, None]) -> Iterator[tuple[Example | Dropped, set[str]]]:
    reader, first, any_row = Reader(own), None, False
    for item in items_of(path, own.encoding, own.delimiter, known_columns(own)):
        if isinstance(item, Header):
            _note_unread(unread, (name for name in item.columns if name not in known_columns(own)))
            if (missing := reader.missing(item.columns)) is not None:
                raise _no_column(item.where, missing, item.columns, own)
            continue
        any_row = True
        if isinstance(item, Dropped):
            yield item, set()
            continue
        notes = set(item.notes)
        first = first or item
        found = _example(reader, item, notes)
        _note_unread(unread, reader.unread(item.values))
        yield found, notes
    if first is not None and (key := reader.never_seen()) is not None:
        raise _no_column(first.where, key, tuple(first.values), own)
    if not any_row:
        raise DataError(f"{path}: holds no rows.")


def _example(reader: Reader, row: Row, notes: set[str]) -> Example | Dropped:
    try:
        example = reader.example(row, notes)
    except LeftOut as unusable:
        return Dropped(row.where, str(unusable))
    texts = [turn.content for turn in (*example.context, Message("assistant", example.response))]
    if broken := damage("\n".join(texts)):
        return Dropped(row.where, f"{BROKEN}: {broken}")
    if is_blank(example.prompt):
        return Dropped(row.where, NO_PROMPT)
    if any(text != text.strip() for text in (example.prompt, example.response)):
        notes.add(ENDS)
    if any(map(MARKER.search, texts)):
        notes.add(MARKED)
    if any(text.strip().lower() in MISSING for text in (example.prompt, example.response)):
        notes.add(LIKE_MISSING)
    if any(map(PLACEHOLDER.search, texts)):
        if any(row.values.get(column) not in (None, "", []) for column in MEDIA_COLUMNS):
            return Dropped(row.where, f"{MEDIA}: a placeholder such as <image>, and a column of what stands there")
        notes.add(PLACEHOLDERS)
    return example


def _note_unread(unread: dict[str, None], names: Iterator[str]) -> None:
    for name in names:
        if len(unread) < UNREAD:
            unread[name] = None


def _no_column(where: str, key: str, columns: tuple[str, ...], own: Own) -> DataError:
    """Return the error for a column that no row has."""
    column = column_of(own, key)
    present = ", ".join(columns) or "none"
    return DataError(f"{where}: no column '{column}'.{nearest(column, columns)} Columns: {present}. Set own.{key} to "
                     f"the right one{_delimiter_hint(columns)}.")


def _delimiter_hint(columns: tuple[str, ...]) -> str:
    """Suggest another delimiter if the header seems to have one."""
    marks = [mark for mark in (";", "\t", "|", ",") if len(columns) == 1 and mark in columns[0]]
    return f", or own.delimiter to {marks[0]!r}, which seems to separate the columns" if marks else ""


def _name(own: Own) -> str:
    return own.hub.repo if own.hub is not None else str(paths.ROOT / Path(str(own.file)).expanduser())


def _reasons(counts: _Counts) -> str:
    """Return how many rows were left out, by reason, with the detail of the first row of each."""
    first = {row.counted_as: row for row in reversed(counts.examples)}
    return "".join(f"; {count} left out ({reason})" + (f", the first: {first[reason].where}: {first[reason].reason}"
                                                      if first[reason].reason != reason else "")
                   for reason, count in counts.left_out.items())
