"""Flags that are set for a while, each in one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Flag:
    """Is set within `with flag():`, or within a function that `@flag()` decorates, in this thread alone."""

    def __init__(self, name: str) -> None:
        self._value = ContextVar(name, default=False)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Set the flag until the context ends."""
        before = self._value.set(True)
        try:
            yield
        finally:
            self._value.reset(before)

    @property
    def is_set(self) -> bool:
        """Whether it is set here."""
        return self._value.get()
