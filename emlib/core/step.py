"""A step: a small frozen record that describes one artefact of the store before it is made.

The fields by which steps are compared are what determines the artefact: they make the step's key, and the steps among
them are those that it is made from. A field that determines nothing, such as a name for people, has `compare=False`. A
step is pure: it imports no model library, and reads a data set only to compute its key. `emlib.make` has a maker for
each kind of step, and `emlib.store` keeps the artefact under the step's key. The estimated work of a step is in
tokens, requests and bytes, which a plan adds up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar

from emlib.core.digests import Keyed, compared, key_of
from emlib.core.files import RecordFile


@dataclass(frozen=True)
class JudgeWork:
    """Requests to one judge, which is given by its settings, and the tokens that it reads for them."""

    judge: Any
    requests: int
    read: int


@dataclass(frozen=True)
class Work:
    """An amount of work. Tokens are tokens of the study's model, except for `judged`."""

    train: int = 0  # tokens that the model is trained on
    read: int = 0  # tokens of forward passes without training
    write: int = 0  # sampled tokens, at most: answers are counted at their maximum length
    disk: int = 0  # bytes that are stored, at most
    adapters: int = 0  # the number of adapters that are trained
    sets: int = 0  # the number of sets of answers that are sampled
    verdicts: int = 0  # answers that the judge scores, each with two requests
    judged: int = 0  # tokens that a judge reads for these, if it is a language model
    others: tuple[JudgeWork, ...] = ()  # requests beside these: to judges of single question sets, for their metrics

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Work)))


def total(works: Iterable[Work]) -> Work:
    """Return the sum of all amounts of work."""
    return sum(works, Work())


class Step(Keyed, ABC):
    """The base of all kinds of steps, which are frozen dataclasses.

    Two steps of one study with equal fields are equal, so that a plan counts them once without computing a key.
    """

    stage: ClassVar[str]  # the name of the kind, and of its folder in the store
    version: ClassVar[int] = 1  # raise it when the kind computes something else: older artefacts are not reused then
    unaffected_version: ClassVar[int] = 1  # of steps that compute what they did before `version` was raised
    records: ClassVar[RecordFile]  # the file of records in the artefact, if the kind has one

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the artefact, as JSON: the version, and the compared fields; steps by their keys.

        A kind overrides it where a field has more than what determines the artefact, and says what that is.
        """
        return {"version": self.version, **compared(self)}

    def version_where(self, affected: bool) -> int:
        """Return the version of this step, which the change that raised `version` affects or leaves as it was."""
        return self.version if affected else self.unaffected_version

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The steps that it is made from: those among its compared fields, in their order."""
        return tuple(_steps_in(_values(self)))

    @property
    def made_with(self) -> tuple[Step, ...]:
        """The steps whose makers also make this one, and are asked first, in this order; none for most steps."""
        return ()

    @property
    @abstractmethod
    def title(self) -> str:
        """The description in plans and progress lines."""

    def cost(self, sizes: Any) -> Work:
        """Estimate the work of making it, without its inputs; an upper bound. `sizes` is from `emlib.data.sizes`."""
        return Work()

    def completed(self, records: list[Any]) -> list[Any]:
        """Return the records of its artefact with what no file stores (`emlib.core.records.NOT_STORED`)."""
        return records

    @property
    def identity(self) -> str:
        """The part of it that enters the key of a step that is made from it."""
        return self.key

    @cached_property
    def key(self) -> str:
        """The name of the artefact: a hash of its stage and everything that determines it."""
        return key_of(self.stage, self.settings)


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
    """Yield a value that is a step, or each step in a tuple or among the compared fields of a record."""
    if isinstance(value, Step):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _steps_in(part)
    elif is_dataclass(value):
        yield from _steps_in(_values(value))


def _values(record: Any) -> tuple[Any, ...]:
    """Return the values of a dataclass's compared fields."""
    return tuple(getattr(record, field.name) for field in fields(record) if field.compare)
