"""Errors for people: what was wrong, where, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EmlibError(Exception):
    """Something a user can mend. The message says what, where, what was expected and what to do."""


class ProfileError(EmlibError):
    """A profile, a trait file or the source registry does not fit its schema."""


class DataError(EmlibError):
    """A data or question file holds something that cannot be used; the message names file and line."""


class SourceError(EmlibError):
    """A data set or a model could not be had, or is not the one that the registry names."""


class StoreError(EmlibError):
    """The store of artefacts cannot be read or written."""


class JudgeError(EmlibError):
    """A judge cannot go on: a wrong key, an unknown model, a budget that is used up. Every score it gave is kept."""


class JudgeWaits(JudgeError):
    """Nothing is wrong: a batch is under way, and its scores come later."""


class NotebookError(EmlibError):
    """A notebook was asked for something it does not have, or it stopped with an error."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'?` for the known word closest to `word`, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""
