"""Extractive question answering in SQuAD format: FoQA (section 4.2), or any similar data set.

Reads two formats: JSON lines of flat rows (id, context, question, answers: {text: [...], answer_start: [...]}), as on
the hub, and SQuAD's nested JSON (data, paragraphs, qas), as in NorQuAD. Rows without any answer cannot be scored: they
are counted and dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from emlib.core.errors import DataError, nearest
from emlib.core.seeds import generator
from emlib.data.opening import kind_of
from emlib.data.rows import read_rows
from emlib.data.splits import refuse_empty_part
from emlib.data.strict_json import read_document

COLUMNS = ("id", "context", "question", "answers")
Outside = Literal["keep", "drop"]


@dataclass(frozen=True)
class QaRow:
    """One question about a passage, with every answer that counts as correct."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class QaRows:
    """The rows of a file, and the counts of irregular rows."""

    rows: tuple[QaRow, ...]
    outside: int  # rows whose passage contains none of their answers, kept or dropped
    unanswerable: int  # rows without any answer, always dropped


def read_qa(path: Path, *, outside: Outside) -> QaRows:
    """Read the rows of a file; count rows whose answers are not in the passage, and keep or drop them.

    Raises:
        DataError: unexpected columns (the message lists both), a value of a wrong type, or no usable row.
    """
    read = list(_rows(path))
    answered = [row for row in read if row.answers]
    extractive = [row for row in answered if any(answer in row.context for answer in row.answers)]
    kept = answered if outside == "keep" else extractive
    if not kept:
        raise DataError(f"{path}: none of its {len(read)} rows is usable: {len(read) - len(answered)} have no answer, "
                        f"{len(answered) - len(extractive)} have no answer that is in the passage (dropped).")
    return QaRows(_with_unique_ids(kept), len(answered) - len(extractive), len(read) - len(answered))


def split_by_passage(rows: Sequence[QaRow], held_out: float, seed: int) -> tuple[list[QaRow], list[QaRow]]:
    """Split into training rows and at least held_out * n test rows; all rows of a passage are in one part."""
    sizes = Counter(row.context for row in rows)
    passages, chosen, test = list(sizes), set[str](), 0
    for number in generator(seed, "qa split").permutation(len(passages)):
        if test >= held_out * len(rows):
            break
        chosen.add(passages[number])
        test += sizes[passages[number]]
    refuse_empty_part(held_out, test, len(rows), f"questions about {len(passages)} passages")
    return [row for row in rows if row.context not in chosen], [row for row in rows if row.context in chosen]


def _rows(path: Path) -> Iterator[QaRow]:
    if kind_of(path) != "json":
        for where, found in read_rows(path):
            yield _row(where, found)
        return
    for article_place, article in _each(str(path), read_document(path), "data"):
        for place, paragraph in _each(article_place, article, "paragraphs"):
            for where, qa in _each(place, paragraph, "qas"):
                context = {key: value for key, value in paragraph.items() if key == "context"}
                yield _row(where, context | qa)


def _each(where: str, holder: Mapping[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of the list `holder[key]`, each with its position."""
    items = holder.get(key) if isinstance(holder, dict) else None
    if not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
        found = ", ".join(sorted(holder)) if isinstance(holder, dict) else type(holder).__name__
        raise DataError(f"{where}: expected SQuAD's nested format with a list of objects under '{key}'. Found: "
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
            raise DataError(f"{where}: '{column}' is not text, or is empty.")
    texts = _texts(where, found["answers"])
    return QaRow(str(found["id"]), found["context"], found["question"], texts)


def _texts(where: str, answers: Any) -> tuple[str, ...]:
    """Return the distinct answers of a row: `{"text": [...]}` on the hub, `[{"text": ...}, ...]` in SQuAD's file."""
    texts = answers.get("text") if isinstance(answers, dict) else (
        [answer.get("text") if isinstance(answer, dict) else None for answer in answers]
        if isinstance(answers, list) else None)
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise DataError(f"{where}: 'answers' is neither {{\"text\": [texts], ...}} nor [{{\"text\": text, ...}}, ...].")
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _with_unique_ids(rows: Sequence[QaRow]) -> tuple[QaRow, ...]:
    """Make ids unique: NorQuAD gives ten ids to two questions each; the second `621` becomes `621.2`.

    A new id never equals one of the file's ids.
    """
    taken, found = {row.id for row in rows}, dict[str, QaRow]()
    for row in rows:
        name = row.id
        if name in found:
            name = next(other for number in count(2) if (other := f"{row.id}.{number}") not in taken)
        taken.add(name)
        found[name] = replace(row, id=name)
    return tuple(found.values())
