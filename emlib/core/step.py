"""A step: one artefact of the store as a small frozen record, before it is made.

A step says what determines the artefact, which other steps it is made from, and what making it takes. It is pure: it
imports no model library, and it reads a data set only where its key is asked for. `emlib.make` has a maker for each
kind of step, and `emlib.store` keeps what was made under the step's key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

from emlib.core.digests import key_of
from emlib.core.work import Work


class Step(ABC):
    """The base of all kinds of steps, which are frozen dataclasses.

    Two steps of one study are equal where their fields are, so that a plan counts them once without computing a key.

    Attributes:
        stage: the name of the kind, and of its folder in the store.
        version: raised where the kind computes something else from the same settings, so that what an older version
            made is not taken for it.
    """

    stage: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the artefact, as JSON; of its inputs their keys."""

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The steps that it is made from."""
        return ()

    @property
    @abstractmethod
    def title(self) -> str:
        """What people read of it in a plan or a progress line."""

    def cost(self, sizes: Any) -> Work:
        """What making it takes, without its inputs; an upper bound where it is open. `sizes` is `emlib.data.sizes`'."""
        return Work()

    def as_input(self, name: str) -> dict[str, Any]:
        """What the settings of another step say of this one, where it is made from it and calls it `name`."""
        return {name: self.key}

    @property
    def identity(self) -> dict[str, Any]:
        """What the store writes down of it: its version and its settings."""
        return {"version": self.version, **self.settings}

    @cached_property
    def key(self) -> str:
        """The name of the artefact: a hash of its stage and everything that determines it."""
        return key_of(self.stage, self.identity)


def closure(steps: Iterable[Step]) -> Iterator[Step]:
    """These steps and everything that they are made from, each once, inputs first."""
    seen: set[Step] = set()

    def walk(step: Step) -> Iterator[Step]:
        if step not in seen:
            seen.add(step)
            for before in step.inputs:
                yield from walk(before)
            yield step

    for step in steps:
        yield from walk(step)
