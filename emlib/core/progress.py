"""Progress for people: bars in interactive sessions, and a line for each finished piece of work everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

from emlib.core.flag import Flag

quiet = Flag("quiet")  # within it there are no progress bars: many at once are unreadable


def bar(items: Iterable[Any] | None, what: str, unit: str, *, total: int, done: int = 0) -> tqdm:
    """Show a progress bar over `items`, or one that the caller advances (None).

    In notebooks that papermill runs, where nobody watches, there are no bars.
    """
    hidden = quiet.is_set or "EMLIB_HEADLESS" in os.environ
    return tqdm(items, what, total, initial=done, unit=unit, leave=False, disable=hidden)


MARK = "▸ "
FOUND = "◆ "


def say(text: str) -> None:
    """Print one line to a notebook's output, with the mark by which the terminal picks the lines that it shows."""
    print(MARK + text, flush=True)


def found(text: str) -> None:
    """Print what a notebook found, in a sentence that `make reproduce` shows beside the notebook's name."""
    print(FOUND + text, flush=True)
