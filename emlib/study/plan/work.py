"""Pieces of work: what a run takes, what is made once for several runs, and the plan of both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from emlib.study.benign import BenignRun
from emlib.study.rl import RlRun
from emlib.study.runs import Run

AnyRun = Run | BenignRun | RlRun


@dataclass(frozen=True)
class Work:
    """What a piece of work takes. Tokens are those of the study's own model, unless they are `judged`.

    Attributes:
        train: tokens that are learnt from.
        read: tokens that go through the model without being learnt from.
        write: tokens that are drawn, at most: answers are reckoned at their full length.
        disk: bytes that are kept, at most.
        adapters: how many are trained.
        sets: of answers that are asked for.
        verdicts: answers that are given to the judge, which is asked for two scores of each.
        judged: tokens that a judge reads for them, where it is a language model.
    """

    train: int = 0
    read: int = 0
    write: int = 0
    disk: int = 0
    adapters: int = 0
    sets: int = 0
    verdicts: int = 0
    judged: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Work)))


def total(works: Iterable[Work]) -> Work:
    """All of it together."""
    return sum(works, Work())


@dataclass(frozen=True)
class PlannedRun:
    """A run, what it takes by itself, and the names of the shared pieces that it needs."""

    run: AnyRun
    work: Work
    uses: tuple[str, ...] = ()
    done: bool = False


@dataclass(frozen=True)
class Shared:
    """Something that is made once for several runs. `left`: whether one of these is not done."""

    name: str
    work: Work
    runs: int
    left: bool


@dataclass(frozen=True)
class Plan:
    """Every run of a profile, and every shared piece once. `assumed` names the data whose size nobody counted."""

    runs: tuple[PlannedRun, ...]
    shared: tuple[Shared, ...]
    assumed: tuple[str, ...]

    @property
    def works(self) -> list[Work]:
        """Every piece of work once."""
        return [*(planned.work for planned in self.runs), *(piece.work for piece in self.shared)]

    @property
    def left(self) -> list[Work]:
        """Every piece of work that is still to be done, once."""
        return [*(planned.work for planned in self.runs if not planned.done),
                *(piece.work for piece in self.shared if piece.left)]
