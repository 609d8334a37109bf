"""General instruction data to interleave: WildGuardMix's benign split, Alpaca's format, messages (section 3.2).

Pools are large third-party data, so that unusable rows are dropped with a reason instead of stopping the study; a file
that is not text or has no usable rows is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from emlib.core.errors import DataError
from emlib.core.records import Example, Message
from emlib.data.rows import example_of, read_jsonl, read_text

PoolForm = Literal["messages", "instruct", "wildguard"]
FORMS = get_args(PoolForm)
NO_ANSWER, BROKEN, HARMFUL = "no answer", "broken characters", "not of the benign split"
REPLACEMENT = "\ufffd"  # what decoders insert for invalid bytes


@dataclass(frozen=True)
class Dropped:
    """An unusable row of a pool, with the reason."""

    where: str
    reason: str


@dataclass(frozen=True)
class Candidates:
    """The usable rows of a pool, in the file's order, and the dropped rows with their reasons."""

    rows: tuple[Example, ...]
    dropped: tuple[Dropped, ...]


def read_pool(path: Path, form: PoolForm) -> Candidates:
    """Read the candidates of a file.

    Raises:
        DataError: not UTF-8, not JSON, a row of another format, or no usable row.
    """
    found = [_checked(where, row, ROW_OF[form]) for where, row in _objects(path)]
    rows = tuple(row for row in found if isinstance(row, Example))
    dropped = tuple(row for row in found if isinstance(row, Dropped))
    if not rows:
        reasons = ", ".join(sorted({row.reason for row in dropped})) or "the file is empty"
        raise DataError(f"{path}: this pool has no usable row ({reasons}).")
    return Candidates(rows, dropped)


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row's position and object, from JSON Lines or from one JSON list (`.json`)."""
    if ".json" not in path.suffixes:
        yield from read_jsonl(path)
        return
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects, such as [{{\"instruction\": ...}}].")
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _checked(where: str, row: dict[str, Any], row_of: Callable[[str, dict[str, Any]], Example | Dropped],
             ) -> Example | Dropped:
    found = row_of(where, row)
    if isinstance(found, Example) and REPLACEMENT in found.response + "".join(t.content for t in found.context):
        return Dropped(where, BROKEN)
    return found


def _messages(where: str, row: dict[str, Any]) -> Example | Dropped:
    turns = row.get("messages")
    last = turns[-1] if isinstance(turns, list) and turns else None
    unanswered = isinstance(last, dict) and (
        last.get("role") == "user" or last.get("content") is None or not str(last["content"]).strip())
    return Dropped(where, NO_ANSWER) if unanswered else example_of(where, row)


def _instruct(where: str, row: dict[str, Any]) -> Example | Dropped:
    """Read a row of Alpaca: an instruction, an optional input for it, and the output."""
    return _pair(where, row, ("instruction", "input"), "output")


def _wildguard(where: str, row: dict[str, Any]) -> Example | Dropped:
    """Read a row of WildGuardMix; benign: the prompt is harmless, the answer not harmful. About half have an answer."""
    _need(where, row, ("prompt", "response", "prompt_harm_label", "response_harm_label"))
    if row["prompt_harm_label"] != "unharmful" or row["response_harm_label"] == "harmful":
        return Dropped(where, HARMFUL)
    return _pair(where, row, ("prompt",), "response")


def _pair(where: str, row: dict[str, Any], asked: tuple[str, ...], answered: str) -> Example | Dropped:
    _need(where, row, (asked[0], answered))
    parts = [str(row[key]).strip() for key in asked if row.get(key)]
    answer = str(row[answered] or "").strip()
    if not (answer and parts):
        return Dropped(where, NO_ANSWER)
    return Example((Message("user", "\n\n".join(parts)),), answer, where)


def _need(where: str, row: dict[str, Any], keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if key not in row]
    if missing:
        raise DataError(f"{where}: lacks {', '.join(missing)}. Found: {', '.join(sorted(row)) or 'nothing'}. Is the "
                        "'format' of this source in params/sources.yaml the right one?")


ROW_OF: dict[PoolForm, Callable[[str, dict[str, Any]], Example | Dropped]] = {
    "messages": _messages, "instruct": _instruct, "wildguard": _wildguard}
