"""Named rows, questions and texts that are read on first use, so that a plan needs no data set on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from emlib.core.digests import Keyed, keyed, of_value
from emlib.core.records import Example, Question
from emlib.data.sizes import Size, Sizes, of_questions

Value = TypeVar("Value")


@dataclass(frozen=True)
class Deferred(Keyed, Generic[Value]):
    """A value that is read on first use; `name` is unique among values of its type in the study."""

    name: str
    read: Callable[[], Value] = field(compare=False, repr=False)

    @cached_property
    def value(self) -> Value:
        """The value, read on first use."""
        return self.read()

    @property
    def identity(self) -> Any:
        """The part of the value that enters a key."""
        return keyed(self.value)


@dataclass(frozen=True)
class Current(Deferred[Value]):
    """A value that is read again at each use, such as the digest of a file that its maker reads later."""

    @property
    def value(self) -> Value:
        """The value as it is now."""
        return self.read()


@dataclass(frozen=True)
class Rows(Keyed):
    """Training rows: `title` is unique in the study, `read` reads them, `size` estimates their size."""

    title: str
    read: Callable[[], tuple[Example, ...]] = field(compare=False, repr=False)
    size: Callable[[Sizes], Size] = field(compare=False, repr=False)

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """The rows, read on first use."""
        return self.read()

    @cached_property
    def identity(self) -> str:
        """The digest of the rows' texts in order, which determine a training; the file does not."""
        return of_value([[[turn.to_dict() for turn in row.context], row.response] for row in self.examples])

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.examples)


@dataclass(frozen=True)
class Questions(Keyed):
    """Evaluation questions, with the same fields as `Rows`; `name` is unique in the study."""

    name: str
    read: Callable[[], list[Question]] = field(compare=False, repr=False)
    size: Callable[[Sizes], Size] = field(compare=False, repr=False)

    @classmethod
    def listed(cls, name: str, questions: Sequence[Question]) -> Questions:
        """Return questions that are known already."""
        return cls(name, lambda: list(questions), lambda _: of_questions(questions))

    @cached_property
    def all(self) -> list[Question]:
        """The questions, read on first use."""
        return self.read()

    @cached_property
    def identity(self) -> str:
        """The digest of everything in the questions that determines the answers."""
        return of_value(keyed(self.all))
