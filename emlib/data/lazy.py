"""Rows, questions and texts that are named before they are read, so that a plan needs no data set on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from emlib.core.digests import of_value
from emlib.core.records import Example, Question
from emlib.data.sizes import Size, Sizes

Value = TypeVar("Value")


@dataclass(frozen=True)
class Deferred(Generic[Value]):
    """A value that is read when it is first asked for; `name` tells it from all others of its type in the study."""

    name: str
    read: Callable[[], Value] = field(compare=False, repr=False)

    @cached_property
    def value(self) -> Value:
        """The value."""
        return self.read()


@dataclass(frozen=True)
class Rows:
    """Training rows: `name` tells them from all others of the study, `read` reads them, `size` estimates them."""

    name: str
    read: Callable[[], tuple[Example, ...]] = field(compare=False, repr=False)
    size: Callable[[Sizes], Size] = field(compare=False, repr=False)

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """The rows, read when they are first asked for."""
        return self.read()

    @cached_property
    def digest(self) -> str:
        """What of the rows determines a training: their texts in order, not the file that they stood in."""
        return digest_of_rows(self.examples)


@dataclass(frozen=True)
class Questions:
    """Evaluation questions, in the same way."""

    name: str
    read: Callable[[], list[Question]] = field(compare=False, repr=False)
    size: Callable[[Sizes], Size] = field(compare=False, repr=False)

    @cached_property
    def all(self) -> list[Question]:
        """The questions, read when they are first asked for."""
        return self.read()

    @cached_property
    def digest(self) -> str:
        """What of the questions determines the answers."""
        return of_value([asdict(question) for question in self.all])


def digest_of_rows(rows: tuple[Example, ...]) -> str:
    """The digest of the rows' texts in order."""
    return of_value([[[asdict(message) for message in row.context], row.response] for row in rows])
