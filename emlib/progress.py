"""Progress for people: bars where somebody watches, a line for each finished piece everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def bar(items: Iterable[Any], what: str, unit: str, *, total: int, done: int = 0) -> tqdm:
    """A progress bar over `items`; none in notebooks that papermill runs, where nobody sees it move."""
    return tqdm(items, what, total, initial=done, unit=unit, leave=False, disable="EMLIB_HEADLESS" in os.environ)


def counter(what: str, unit: str, total: int) -> tqdm:
    """A progress bar that is moved by hand."""
    return tqdm(desc=what, total=total, unit=unit, leave=False, disable="EMLIB_HEADLESS" in os.environ)


MARK = "▸ "


def say(text: str) -> None:
    """One line that stays: in a notebook's output, and in the terminal, which shows marked lines alone."""
    print(MARK + text, flush=True)
