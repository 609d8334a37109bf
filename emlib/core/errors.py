"""Errors for people: what was wrong, where, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHORT = 5  # letters of a word


class EmlibError(Exception):
    """An error that a user can fix. The message says what is wrong, where, what was expected and what to do.

    A message that quotes half of a surrogate pair from a file shows its code, so that it can be printed anywhere.
    """

    def __init__(self, *of: object) -> None:
        super().__init__(*(one.encode("utf-8", "backslashreplace").decode() if isinstance(one, str) else one
                           for one in of))


class ProfileError(EmlibError):
    """A profile, a trait file or the source registry does not fit its schema."""


class DataError(EmlibError):
    """A data or question file has an unusable entry; the message names file and line."""


class SourceError(EmlibError):
    """A data set or a model cannot be downloaded or read, or differs from the one in the registry."""


class StoreError(EmlibError):
    """The store of artefacts cannot be read or written."""


class JudgeError(EmlibError):
    """A judge cannot continue: a wrong key, an unknown model, a spent budget. All scores so far are stored."""


class JudgeWaits(JudgeError):
    """Nothing is wrong: a batch is being processed, and its scores arrive later."""


class NotebookError(EmlibError):
    """A notebook lacks what was requested of it, or it stopped with an error."""


def nearest(word: str, known: Iterable[str], alike: float | None = None) -> str:
    """Return ` Did you mean 'x'?` with the known word closest to `word`, or an empty string if none is near.

    `alike` is the least share of common letters; None is for a word that is wrong in any case.
    """
    if alike is None:
        alike = 0.5 if len(word) <= SHORT else 0.6  # two swapped letters are half of a word of four
    match = difflib.get_close_matches(word[:80], list(known), n=1, cutoff=alike)
    return f" Did you mean '{match[0]}'?" if match else ""


def shortened(text: str, length: int = 80) -> str:
    """Return a text for a message, cut to `length` characters."""
    return text if len(text) <= length else f"{text[:length]} ... ({len(text):,} characters)"


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message, cut to 200 characters."""
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line[:200]}"
