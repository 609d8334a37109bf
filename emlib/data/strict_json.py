"""Parses JSON as Python's library does, but refuses what that lets pass in silence.

A key that is there twice is an error, because the library keeps the last one; a number keeps the text that it was
written as; what is nested too deeply, or is a number of too many digits, leaves a row out.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from emlib.core.errors import DataError, shortened
from emlib.data.left_out import DEEP, LONG_NUMBER, LeftOut
from emlib.data.opening import read_text

LONGEST_NUMBER = 1000  # digits; Python's own limit, 4,300, is an error of another kind


class Written(float):
    """A number with a fraction or an exponent, and the text that it was written as."""

    def __init__(self, text: str) -> None:
        self.text = text


class _KeyTwice(Exception):
    """A key is there twice in one object."""


def parse(where: str, text: str, *, whole: bool = False) -> Any:
    """Parse a text that is one JSON value; with `whole` it is a whole file, in which errors have a line.

    Raises:
        DataError: broken JSON, or a key twice in one object.
        LeftOut: nested too deeply, or a number of too many digits.
    """
    try:
        return _DECODER.decode(text)
    except _KeyTwice as error:
        raise DataError(f"{where}: the key {error} is there twice in one object, and it is not clear which value "
                        "counts. Rename or remove one.") from error
    except RecursionError as error:
        raise LeftOut(DEEP) from error
    except json.JSONDecodeError as error:
        at = f"{where}:{error.lineno}" if whole else where
        raise DataError(f"{at}: broken JSON at column {error.colno}: {error.msg}.{_hint(text, error)}") from error


def parse_document(path: Path, text: str) -> Any:
    """Parse the text of a file that is one JSON value.

    Raises:
        DataError: as for `parse`, and where something is nested too deeply or has a number of too many digits.
    """
    try:
        return parse(str(path), text, whole=True)
    except LeftOut as unusable:
        raise DataError(f"{path}: {unusable}. Correct or remove it; where rows stand on lines of their own (.jsonl), "
                        "such a row is left out.") from unusable


def read_document(path: Path) -> Any:
    """Read a file that is one JSON value, as `parse_document` does."""
    return parse_document(path, read_text(path))


def _hint(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data" and text[error.pos:].strip() == ",":
        return " In JSON Lines no comma stands between the rows: remove it, or make the file one JSON list in [ ]."
    if error.msg == "Extra data" and "\n" in text[:error.pos].strip():
        return " In JSON Lines each row stands on a line of its own, and in JSON all rows stand in one list in [ ]."
    return ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _KeyTwice(f"{twice!a}, as in {shortened(json.dumps(found), 60)},")
    return found


def _short(text: str) -> str:
    if len(text) > LONGEST_NUMBER:
        raise LeftOut(LONG_NUMBER)
    return text


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=lambda text: int(_short(text)),
                            parse_float=lambda text: Written(_short(text)))
