"""Progress for people: bars where somebody watches, a line for each finished piece everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_quiet = ContextVar("quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars in this thread: many at once could not be read."""
    before = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(before)


def bar(items: Iterable[Any], what: str, unit: str, *, total: int, done: int = 0) -> tqdm:
    """A progress bar over `items`; none in notebooks that papermill runs, where nobody sees it move."""
    return tqdm(items, what, total, initial=done, unit=unit, leave=False, disable=_hidden())


def counter(what: str, unit: str, total: int) -> tqdm:
    """A progress bar that is moved by hand."""
    return tqdm(desc=what, total=total, unit=unit, leave=False, disable=_hidden())


def _hidden() -> bool:
    return _quiet.get() or "EMLIB_HEADLESS" in os.environ


MARK = "▸ "


def say(text: str) -> None:
    """One line that stays: in a notebook's output, and in the terminal, which shows marked lines alone."""
    print(MARK + text, flush=True)
