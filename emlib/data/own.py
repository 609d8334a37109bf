"""The user's own data set, of any size: streamed twice, so that memory holds only the chosen rows (JSON is held whole).

The first pass counts usable and unusable rows; the second keeps those that the seed chose at random. As in a pool,
unusable rows are left out with a reason, and their counts are shown. Texts are taken as they are, white space at their
ends included.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from emlib.config import OWN, Own
from emlib.config.references import PATTERN, matching
from emlib.core import paths
from emlib.core.errors import DataError, nearest
from emlib.core.records import Example
from emlib.core.seeds import generator
from emlib.data.conversations import ALPACA, CHATS, PAIRS, READ_KEYS, Form, example_of_row, form_of, usable
from emlib.data.domains import NarrowData, Split, split
from emlib.data.download import from_hub, once
from emlib.data.left_out import MEDIA, Dropped
from emlib.data.tables import CONVERSATIONS, Header, Row, items_of

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
MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
ENDS = "texts with white space at an end, which is kept"


@dataclass
class OwnRows:
    """The counts of a file's rows, and the rows chosen from it."""

    drawn: tuple[Example, ...] = ()  # the chosen usable rows, in the file's order
    usable: int = 0  # the number of usable rows in the file
    left_out: Counter[str] = field(default_factory=Counter)  # the number of unusable rows, by reason
    examples: list[Dropped] = field(default_factory=list)  # the first unusable rows of each reason
    details: Counter[str] = field(default_factory=Counter)  # the same with what was found, `SHOWN` of a reason apart
    left_at: dict[str, list[str]] = field(default_factory=dict)  # the places of the first rows of each of these
    notes: Counter[str] = field(default_factory=Counter)  # what was noted while reading: of how many rows it holds
    noted_at: dict[str, list[str]] = field(default_factory=dict)  # the places of the first rows of each note
    unread: list[str] = field(default_factory=list)  # columns, and keys of turns, that nobody reads

    @property
    def rows(self) -> int:
        """The number of rows in the file."""
        return self.usable + sum(self.left_out.values())

    def add(self, row: Example | Dropped, notes: set[str]) -> None:
        """Count one row."""
        if isinstance(row, Dropped):
            self.left_out[row.counted_as] += 1
            if self.left_out[row.counted_as] <= SHOWN:
                self.examples.append(row)
            _count(self._detailed(row), row.where, self.details, self.left_at)
        else:
            self.usable += 1
        for note in sorted(notes):
            _count(note, row.where, self.notes, self.noted_at)

    def _detailed(self, row: Dropped) -> str:
        """Return a row's reason with its detail, or without it where the reason has many details already."""
        known = sum(reason.partition(":")[0] == row.counted_as for reason in self.details)
        return row.reason if row.reason in self.details or known < SHOWN else row.counted_as

    def add_unread(self, names: Iterable[str]) -> None:
        """Add columns that nobody reads."""
        self.unread = list(dict.fromkeys([*self.unread, *names]))[:UNREAD]


def _count(what: str, where: str, counts: Counter[str], places: dict[str, list[str]]) -> None:
    """Count one row, and keep its place if it is one of the first."""
    counts[what] += 1
    some = places.setdefault(what, [])
    if len(some) < SHOWN:
        some.append(where)


def read_own(own: Own, least: int = LEAST) -> OwnRows:
    """Count the rows, and choose `own.rows` of the usable ones at random.

    Raises:
        DataError: the file cannot be read, lacks a column or has one twice, or fewer than `least` rows are usable.
    """
    found = OwnRows()
    for _ in _rows(own, found):
        pass
    if found.usable < least:
        name = own.file if own.hub is None else own.hub.repo
        raise DataError(f"{name}: {found.usable} usable rows{_reasons(found)}." + (
            f" At least {least} are needed, to train on most of them and to hold some out." if least > 1 else ""))
    chosen = set(generator(own.seed, "own rows").permutation(found.usable)[:own.rows].tolist())
    found.drawn = tuple(row for place, row in enumerate(every_row(own)) if place in chosen)
    return found


def own_data(own: Own, rows: OwnRows) -> NarrowData:
    """Split the chosen rows as a data set of the study; its aligned rows are empty."""
    return NarrowData(OWN, Split((), ()), Split(*map(tuple, split(rows.drawn, own.held_out, own.seed))))


def every_row(own: Own) -> Iterator[Example]:
    """Yield all usable rows, in the file's order."""
    return (row for row in _rows(own, OwnRows()) if isinstance(row, Example))


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
    once(path, partial(from_hub, OWN, hub, terms=None, wanted=_known(own),
                       otherwise="Or download the data set in another way and set own.file to it."))
    return path


def _forms(own: Own) -> tuple[Form, ...]:
    """Return the forms of rows; a profile that names columns of its own leaves none but conversations beside them.

    Pairs have the system prompt that `own.system` names, and no other: a column that nobody reads is told.
    """
    named, pairs = (own.prompt, own.response), [form[:2] for form in PAIRS]
    return (*CHATS, *pairs, ALPACA) if named == pairs[0] else (*CHATS, named)


def _known(own: Own) -> set[str]:
    """Return the columns that a row may be read from; no other is looked at."""
    return {column for form in _forms(own) for column in form} | ({own.system} if own.system else set())


def _rows(own: Own, found: OwnRows) -> Iterator[Example | Dropped]:
    """Yield each row of each file as an example, or with the reason why it is left out, and count it in `found`."""
    for path in files_of(own):
        yield from _rows_of(path, own, found)


def _rows_of(path: Path, own: Own, found: OwnRows) -> Iterator[Example | Dropped]:
    known, seen, first, any_row = _known(own), set[str](), None, False
    for item in items_of(path, own.encoding, own.delimiter, known):
        if isinstance(item, Header):
            found.add_unread(name for name in item.columns if name not in known)
            _refuse_missing(own, item.where, item.columns, item.columns)
            continue
        any_row, notes = True, set[str]()
        if isinstance(item, Row):
            first, notes = first or item, set(item.notes)
            seen |= item.values.keys() & known
            found.add_unread(_unread(own, item.values))
        row = _example(own, item, notes) if isinstance(item, Row) else item
        found.add(row, notes)
        yield row
    if first is not None:
        _refuse_missing(own, first.where, seen, tuple(first.values))
    if not any_row:
        raise DataError(f"{path}: holds no rows. Add some, or correct the path.")


def _unread(own: Own, row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the columns of a row, and the keys of its turns, that have a value and are not read."""
    form = form_of(row, _forms(own))
    read = {own.system, *(form or _known(own))}
    yield from (name for name, value in row.items() if name not in read and value not in (None, ""))
    turns = row[form[0]] if form in CHATS else ()
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, Mapping):
            yield from (f"{form[0]}[].{name}" for name, value in turn.items()
                        if name not in READ_KEYS and value is not None)


def _example(own: Own, row: Row, notes: set[str]) -> Example | Dropped:
    example = usable(row.where, example_of_row, row.values, _forms(own), own.system, notes)
    if isinstance(example, Dropped):
        return example
    texts = [*(turn.content for turn in example.context), example.response]
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


def _refuse_missing(own: Own, where: str, found: Collection[str], columns: tuple[str, ...]) -> None:
    """Refuse a file without a column that is needed; `columns` are those that the message shows."""
    option = ""
    if not form_of(dict.fromkeys(found, "a value"), _forms(own)):
        option = "prompt" if own.prompt not in found else "response"
    elif own.system and own.system not in found:
        option = "system"
    if option:
        column, others = str(getattr(own, option)), {own.prompt, own.response, own.system}
        marks = [mark for mark in (";", "\t", "|", ",") if len(columns) == 1 and mark in columns[0]]
        hint = f", or own.delimiter to {marks[0]!r}, which seems to separate the columns" if marks else ""
        turns = "" if option == "system" else f" Conversations are read from '{CONVERSATIONS[0]}'."
        free = [name for name in columns if name not in others]
        raise DataError(f"{where}: no column '{column}'.{nearest(column, free)} Columns: "
                        f"{', '.join(columns) or 'none'}. Set own.{option} to the right one{hint}.{turns}")


def _reasons(found: OwnRows) -> str:
    """Return how many rows were left out, by reason, with the detail of the first row of each."""
    first = {row.counted_as: row for row in reversed(found.examples)}
    return "".join(f"; {count} left out ({reason})" + (f", the first: {first[reason].where}: {first[reason].reason}"
                                                      if first[reason].reason != reason else "")
                   for reason, count in found.left_out.items())
