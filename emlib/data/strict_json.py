"""Parses JSON as Python's library does, but refuses what that lets pass in silence.

A key that is there twice is an error, because the library keeps the last one; a number keeps the text that it was
written as; what is nested too deeply, or is a number of too many digits, leaves a row out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emlib.core.errors import DataError
from emlib.data.left_out import DEEP, LONG_NUMBER, LeftOut
from emlib.data.opening import read_text

LONGEST_NUMBER = 1000  # digits; Python's own limit, 4,300, is an error of another kind


class Written(float):
    """A number with a fraction or an exponent, and the text that it was written as."""

    text: str

    def __new__(cls, text: str) -> Written:  # noqa: D102
        number = super().__new__(cls, text)
        number.text = text
        return number


class _KeyTwice(Exception):
    """A key is there twice in one object."""


def parse(where: str, text: str, whole: str = "") -> Any:
    """Parse a text that is one JSON value; `whole` names the file where the text is all of it, and not one line.

    Raises:
        DataError: broken JSON, or a key twice in one object.
        LeftOut: nested too deeply, or a number of too many digits.
    """
    with _explained(where, text, whole):
        return _DECODER.decode(text)


def read_document(path: Path) -> Any:
    """Read a file that is one JSON value.

    Raises:
        DataError: as for `parse`, and where something is nested too deeply or has a number of too many digits.
    """
    try:
        return parse(str(path), read_text(path), str(path))
    except LeftOut as unusable:
        raise DataError(f"{path}: {unusable}.") from unusable


def parse_items(where: str, text: str) -> Iterator[tuple[int, Any]]:
    """Parse the items of a text that is one JSON list, one after the other, each with its number from 1.

    Raises:
        DataError: as for `parse`, and where an item is nested too deeply or has a number of too many digits.
    """
    number = 0
    place = _after_space(text, _after_space(text, 0) + 1)
    while text[place:place + 1] != "]":
        number += 1
        try:
            with _explained(f"{where}, row {number}", text, where):
                item, place = _DECODER.raw_decode(text, place)
                place = _after_space(text, place)
                if text[place:place + 1] == ",":
                    place = _after_space(text, place + 1)
                    if text[place:place + 1] == "]":
                        raise json.JSONDecodeError("a comma after the last item", text, place)
                elif text[place:place + 1] != "]":
                    raise json.JSONDecodeError("expected a comma or the end of the list", text, place)
        except LeftOut as unusable:
            raise DataError(f"{where}, row {number}: {unusable}. Correct or remove it; where rows stand on lines of "
                            "their own (.jsonl), such a row is left out.") from unusable
        yield number, item
    if text[place + 1:].strip():
        raise DataError(f"{where}: something follows the end of the list: {text[place + 1:].strip()[:40]!r}.")


def _after_space(text: str, place: int) -> int:
    while text[place:place + 1] in (" ", "\t", "\n", "\r") and place < len(text):
        place += 1
    return place


@contextmanager
def _explained(where: str, text: str, whole: str = "") -> Iterator[None]:
    """Turn the parser's errors into ours; `whole` names the file where `text` is all of it."""
    try:
        yield
    except _KeyTwice as error:
        raise DataError(f"{where}: the key {error} is there twice in one object, and it is not clear which value "
                        "counts. Rename or remove one.") from error
    except RecursionError as error:
        raise LeftOut(DEEP) from error
    except json.JSONDecodeError as error:
        at = f"{whole}:{error.lineno}" if whole else where
        raise DataError(f"{at}: broken JSON at column {error.colno}: {error.msg}.{_hint(text, error)}") from error


def _hint(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data" and text[error.pos:].strip() == ",":
        return " In JSON Lines no comma stands between the rows: remove it, or make the file one JSON list in [ ]."
    if error.msg == "Extra data" and "\n" in text[:error.pos].strip():
        return " In JSON Lines each row stands on a line of its own, and in JSON all rows stand in one list in [ ]."
    return ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _KeyTwice(ascii(Counter(key for key, _ in pairs).most_common(1)[0][0]))
    return found


def _whole(text: str) -> int:
    return int(_short(text))


def _fraction(text: str) -> float:
    return Written(_short(text))


def _short(text: str) -> str:
    if len(text) > LONGEST_NUMBER:
        raise LeftOut(LONG_NUMBER)
    return text


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_fraction)
