"""Named rows, questions and texts that are read on first use, so that a plan needs no data set on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from emlib.core.digests import of_value
from emlib.core.records import Example, Question
from emlib.data.sizes import Size, Sizes

Value = TypeVar("Value")


@dataclass(frozen=True)
class Deferred(Generic[Value]):
    """A value that is read on first use; `name` is unique among values of its type in the study."""

    name: str
    read: Callable[[], Value] = field(compare=False, repr=False)

    @cached_property
    def value(self) -> Value:
        """The value, read on first use."""
        return self.read()


@dataclass(frozen=True)
class Rows:
    """Training rows: `title` is unique in the study, `read` reads them, `size` estimates their size."""

    title: str
    read: Callable[[], tuple[Example, ...]] = field(compare=False, repr=False)
    size: Callable[[Sizes], Size] = field(compare=False, repr=False)

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """The rows, read on first use."""
        return self.read()

    @cached_property
    def digest(self) -> str:
        """The digest of the rows' texts in order, which determine a training; the file does not."""
        return of_value([[[turn.to_dict() for turn in row.context], row.response] for row in self.examples])

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.examples)

    def as_input(self, name: str) -> dict[str, str]:
        """Return the entry for the rows in the settings of a step that calls them `name`, as a step of rows does."""
        return {name: self.digest}


@dataclass(frozen=True)
class Questions:
    """Evaluation questions, with the same fields as `Rows`; `name` is unique in the study."""

    name: str
    read: Callable[[], list[Question]] = field(compare=False, repr=False)
    size: Callable[[Sizes], Size] = field(compare=False, repr=False)

    @cached_property
    def all(self) -> list[Question]:
        """The questions, read on first use."""
        return self.read()

    @cached_property
    def digest(self) -> str:
        """The digest of everything in the questions that determines the answers."""
        return of_value([asdict(question, dict_factory=_that_answers_depend_on) for question in self.all])


def _that_answers_depend_on(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Leave out the weight of a turn and the cluster of a question, which no answer depends on.

    Keys stay as they were: turns before a question are called `worked`, as worked problems were, and none are left out.
    """
    return {"worked" if name == "before" else name: value for name, value in fields
            if name not in ("weight", "stated_cluster") and (name, value) != ("before", ())}
