"""A step: a small frozen record that describes one artefact of the store before it is made.

A step names what determines the artefact, which other steps it is made from, and its cost. It is pure: it imports no
model library, and reads a data set only to compute its key. `emlib.make` has a maker for each kind of step, and
`emlib.store` keeps the artefact under the step's key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any, ClassVar

from emlib.core.digests import key_of
from emlib.core.files import RecordFile
from emlib.core.work import Work


class Step(ABC):
    """The base of all kinds of steps, which are frozen dataclasses.

    Two steps of one study with equal fields are equal, so that a plan counts them once without computing a key.
    """

    stage: ClassVar[str]  # the name of the kind, and of its folder in the store
    version: ClassVar[int] = 1  # raise it when the kind computes something else: older artefacts are not reused then
    records: ClassVar[RecordFile]  # the file of records in the artefact, if the kind has one

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the artefact, as JSON; inputs are given by their keys."""

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The steps that it is made from: those among its fields, also in tuples, in the fields' order."""
        return tuple(_steps_in(tuple(getattr(self, field.name) for field in fields(self))))  # type: ignore[arg-type]

    @property
    def made_with(self) -> Step | None:
        """The step whose maker also makes this one, and is asked first; None for most steps."""
        return None

    @property
    @abstractmethod
    def title(self) -> str:
        """The description in plans and progress lines."""

    def cost(self, sizes: Any) -> Work:
        """Estimate the work of making it, without its inputs; an upper bound. `sizes` is from `emlib.data.sizes`."""
        return Work()

    def as_input(self, name: str) -> dict[str, Any]:
        """Return the entry for this step in the settings of a step that is made from it and calls it `name`."""
        return {name: self.key}

    def completed(self, records: list[Any]) -> list[Any]:
        """Return the records of its artefact with what no file stores (`emlib.core.records.NOT_STORED`)."""
        return records

    @property
    def identity(self) -> dict[str, Any]:
        """What the store records of it: its version and its settings."""
        return {"version": self.version, **self.settings}

    @cached_property
    def key(self) -> str:
        """The name of the artefact: a hash of its stage and everything that determines it."""
        return key_of(self.stage, self.identity)


def closure(steps: Iterable[Step]) -> Iterator[Step]:
    """Yield these steps and all steps that they are made from, each once, inputs first."""
    seen: set[Step] = set()

    def walk(step: Step) -> Iterator[Step]:
        if step not in seen:
            seen.add(step)
            for before in step.inputs:
                yield from walk(before)
            yield step

    for step in steps:
        yield from walk(step)


def _steps_in(value: object) -> Iterator[Step]:
    """Yield a value that is a step, or each step in a tuple."""
    if isinstance(value, Step):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _steps_in(part)
