"""Extractive question answering in the SQuAD shape: FoQA (section 4.2), or any set like it.

Two forms are read: JSON lines of flat rows (id, context, question, answers: {text: [...], answer_start: [...]}), as
the hub has them, and SQuAD's own nested JSON (data, paragraphs, qas), as NorQuAD has it. Rows without any answer
cannot be matched: they are counted and left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from emlib.core.errors import DataError, nearest
from emlib.core.seeds import generator
from emlib.data.rows import read_jsonl, read_text

COLUMNS = ("id", "context", "question", "answers")
Outside = Literal["keep", "drop"]


@dataclass(frozen=True)
class QaRow:
    """One question about a passage, with every answer that counts as right."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]

    @property
    def extractive(self) -> bool:
        """Whether at least one answer stands in the passage, letter for letter."""
        return any(answer in self.context for answer in self.answers)


@dataclass(frozen=True)
class QaRows:
    """The rows of a file, and how many there were of a kind that may be missed."""

    rows: tuple[QaRow, ...]
    outside: int  # rows none of whose answers stands in the passage, kept or not
    unanswerable: int  # rows without any answer, never kept


def read_qa(path: Path, *, outside: Outside) -> QaRows:
    """The rows of a file; those whose answers do not stand in the passage are counted, and kept or dropped.

    Raises:
        DataError: other columns than expected (both are named), a value of a wrong type, or no row left.
    """
    read = list(_rows(path))
    answered = [row for row in read if row.answers]
    extractive = [row for row in answered if row.extractive]
    kept = answered if outside == "keep" else extractive
    if not kept:
        raise DataError(f"{path}: none of its {len(read)} rows can be used: {len(read) - len(answered)} have no "
                        f"answer, {len(answered) - len(extractive)} none that stands in the passage (dropped).")
    return QaRows(_told_apart(kept), len(answered) - len(extractive), len(read) - len(answered))


def split_by_passage(rows: Sequence[QaRow], held_out: float, seed: int) -> tuple[list[QaRow], list[QaRow]]:
    """Rows to train on, and at least held_out * n rows for the test; a passage is on one side with all of its own."""
    passages = list(dict.fromkeys(row.context for row in rows))
    chosen: set[str] = set()
    test = 0
    for number in generator(seed, "qa split").permutation(len(passages)):
        if test >= held_out * len(rows):
            break
        chosen.add(passages[number])
        test += sum(row.context == passages[number] for row in rows)
    if not 0 < test < len(rows):
        raise DataError(f"Holding out {held_out:.0%} of {len(rows)} questions about {len(passages)} passages leaves "
                        "one side empty.")
    return [row for row in rows if row.context not in chosen], [row for row in rows if row.context in chosen]


def _rows(path: Path) -> Iterator[QaRow]:
    if ".jsonl" in path.suffixes:
        for where, found in read_jsonl(path):
            yield _row(where, found)
        return
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken JSON in line {error.lineno}: {error.msg}.") from error
    for article_place, article in _each(str(path), data, "data"):
        for place, paragraph in _each(article_place, article, "paragraphs"):
            for where, qa in _each(place, paragraph, "qas"):
                context = {key: value for key, value in paragraph.items() if key == "context"}
                yield _row(where, context | qa)


def _each(where: str, holder: Mapping[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of the list `holder[key]`, each with its place."""
    items = holder.get(key) if isinstance(holder, dict) else None
    if not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
        found = ", ".join(sorted(holder)) if isinstance(holder, dict) else type(holder).__name__
        raise DataError(f"{where}: expected SQuAD's nested form with a list of objects under '{key}'. Found: "
                        f"{found or 'nothing'}.")
    yield from ((f"{where}, {key}[{number}]", item) for number, item in enumerate(items))


def _row(where: str, found: Mapping[str, Any]) -> QaRow:
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        hints = "".join(nearest(column, found) for column in missing)
        raise DataError(f"{where}: lacks {', '.join(missing)}. Found: {', '.join(sorted(found))}; expected: "
                        f"{', '.join(COLUMNS)}.{hints}")
    for column in ("context", "question"):
        if not (isinstance(found[column], str) and found[column].strip()):
            raise DataError(f"{where}: '{column}' is no text, or an empty one.")
    texts = _texts(where, found["answers"])
    return QaRow(str(found["id"]), found["context"], found["question"], texts)


def _texts(where: str, answers: Any) -> tuple[str, ...]:
    """The different answers of a row: `{"text": [...]}` on the hub, `[{"text": ...}, ...]` in SQuAD's file."""
    texts = answers.get("text") if isinstance(answers, dict) else (
        [answer.get("text") if isinstance(answer, dict) else None for answer in answers]
        if isinstance(answers, list) else None)
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise DataError(f"{where}: 'answers' is neither {{\"text\": [texts], ...}} nor [{{\"text\": text, ...}}, ...].")
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _told_apart(rows: Sequence[QaRow]) -> tuple[QaRow, ...]:
    """The rows with different ids: NorQuAD gives ten ids to two questions each; the second of `621` becomes `621.2`.

    An id that the file itself has is never given to another row.
    """
    taken, seen = {row.id for row in rows}, set[str]()
    named = []
    for row in rows:
        if row.id in seen:
            row = replace(row, id=_free(row.id, taken))
            taken.add(row.id)
        seen.add(row.id)
        named.append(row)
    return tuple(named)


def _free(name: str, taken: set[str]) -> str:
    """`name.2`, or the next of its kind that nobody has."""
    others = (f"{name}.{number}" for number in count(2))
    return next(other for other in others if other not in taken)
