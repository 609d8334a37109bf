"""The narrow fine-tuning data: aligned and misaligned rows, their split, and in-domain questions (section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from emlib.config import Domain
from emlib.core.errors import DataError
from emlib.core.records import Example, Message, Question
from emlib.core.seeds import chosen, generator
from emlib.data.rows import read_examples, read_pairs
from emlib.data.splits import refuse_empty_part

Item = TypeVar("Item")


@dataclass(frozen=True)
class Split:
    """Training rows and held-out rows."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


@dataclass(frozen=True)
class NarrowData:
    """One domain of the study. If aligned and misaligned rows are equally many, both are split at the same indices.

    The user's own data have no aligned rows: that split is empty.
    """

    name: str
    aligned: Split
    misaligned: Split

    @property
    def sides(self) -> dict[str, Split]:
        """The splits that have rows, by name: aligned, misaligned."""
        return {name: side for name, side in (("aligned", self.aligned), ("misaligned", self.misaligned)) if side.train}


def split(rows: Sequence[Item], held_out: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split rows into training rows and round(held_out * n) held-out rows, each in the file's order.

    6,000 rows at 0.1 give the paper's 5,400 and 600. The split depends only on `seed` and the number of rows, so that
    two files with the same prompts in the same order are split alike.

    Raises:
        DataError: one part would be empty.
    """
    count = round(held_out * len(rows))
    refuse_empty_part(held_out, count, len(rows), "rows")
    out = set(generator(seed, "split").permutation(len(rows))[:count].tolist())
    return [r for i, r in enumerate(rows) if i not in out], [r for i, r in enumerate(rows) if i in out]


def load_domain(name: str, domain: Domain, locate: Callable[[str], Path]) -> NarrowData:
    """Read and split one domain; `locate` turns a source's name into a file.

    Raises:
        DataError: a file cannot be read, one part of the split is empty, or the sides do not differ.
    """
    seed = domain.split_seed
    sides = [Split(*map(tuple, split(chosen(rows, domain.rows, seed, "rows"), domain.held_out, seed)))
             for rows in read_domain(domain, locate)]
    data = NarrowData(name, *sides)
    if _on_both_sides(data) == (count := len(_rows(data.misaligned))):
        raise DataError(f"Data set '{name}': all {count} misaligned rows are aligned rows as well, so that nothing "
                        "tells the sides apart. Expected other answers to the prompts: name another file for one side.")
    return data


def read_domain(domain: Domain, locate: Callable[[str], Path]) -> tuple[list[Example], list[Example]]:
    """Read all rows of one domain, before some are chosen: the aligned and the misaligned ones."""
    if domain.pairs is not None:
        return read_pairs(locate(domain.pairs))
    return read_examples(locate(str(domain.aligned))), read_examples(locate(str(domain.misaligned)))


def in_domain_questions(data: NarrowData, count: int) -> list[Question]:
    """Choose `count` prompts of the held-out misaligned rows as questions, or all of them if there are fewer.

    Skips prompts that also occur in training rows, aligned or misaligned, because they test memory rather than the
    task: the Code set repeats prompts, and 36 of its 600 held-out rows have one that is also in the training part.
    Rows with the same prompt are one question, because statistics take questions as independent.

    Raises:
        DataError: none is left, because the other side trains on some of them.
    """
    found = _held_out_prompts(data)
    if not found.left and found.elsewhere:
        raise DataError(f"Data set '{data.name}': all of its {found.all} held-out prompts are trained on, "
                        f"{found.elsewhere} of them by the other side alone, so that no in-domain question is left. "
                        "Both files should have the same prompts in the same order, because they are split at the same "
                        "rows: sort them alike, and remove rows that only one of them has.")
    return [Question.of(f"{data.name}_{index}", data.misaligned.held_out[index]) for index in _asked(data, count)]


def _asked(data: NarrowData, count: int) -> list[int]:
    """Return the places of the held-out misaligned rows whose prompts are the in-domain questions."""
    rows = data.misaligned.held_out
    new = set(_new_prompts(data, rows))
    order = generator(0, "in-domain questions").permutation(len(rows)).tolist()
    places: dict[tuple[Message, ...], int] = {}
    for index in order:
        if index in new:
            places.setdefault(rows[index].context, index)
    return sorted(list(places.values())[:count])


@dataclass(frozen=True)
class HeldOutPrompts:
    """The number of different held-out prompts of the misaligned rows, and how many of them are not asked, and why."""

    all: int
    repeated: int  # in training rows of their side
    elsewhere: int  # in training rows of the other side alone

    @property
    def left(self) -> int:
        """The number of prompts that no training row has."""
        return self.all - self.repeated - self.elsewhere


def _held_out_prompts(data: NarrowData) -> HeldOutPrompts:
    """Count the held-out prompts of the misaligned rows, and those of them that training rows have."""
    prompts = {row.context for row in data.misaligned.held_out}
    own, other = ({row.context for row in side.train} for side in (data.misaligned, data.aligned))
    return HeldOutPrompts(len(prompts), len(prompts & own), len(prompts & other - own))


def remarks(data: NarrowData, count: int) -> list[str]:
    """Return what to know of a data set: fewer in-domain questions than `count`, rows that both sides have.

    A hold-out with fewer prompts than `count`, all of which are asked, is as the profile states it.
    """
    found, said = _held_out_prompts(data), list[str]()
    if found.left < min(count, found.all):
        reasons = [f"{number} {'is' if number == 1 else 'are'} trained on {where}" for number, where in (
            (found.repeated, f"in other rows of {'its' if found.repeated == 1 else 'their'} side"),
            (found.elsewhere, "by the other side: both files should have the same prompts in the same order"))
            if number]
        said.append(f"{found.left} of {found.all} held-out prompts are asked; {', '.join(reasons)}")
    if both := _on_both_sides(data):
        said.append(f"{both} of {len(_rows(data.misaligned))} misaligned rows are aligned rows as well, with the same "
                    "answer")
    return said


def _on_both_sides(data: NarrowData) -> int:
    """Count the misaligned rows that are aligned rows as well: their two answers are equal."""
    aligned = {(row.context, row.response) for row in _rows(data.aligned)}
    return sum((row.context, row.response) in aligned for row in _rows(data.misaligned))


def _rows(side: Split) -> tuple[Example, ...]:
    return (*side.train, *side.held_out)


def held_out_rows(data: NarrowData, rows: Sequence[Example]) -> tuple[Example, ...]:
    """Return those of the held-out `rows` whose prompts do not occur in training rows, as for in-domain questions.

    All of them where each prompt is trained on, as in a set that repeats a few prompts: there is no other loss then.
    """
    return tuple(rows[index] for index in _new_prompts(data, rows)) or tuple(rows)


def unasked_first(data: NarrowData, rows: Sequence[Example], count: int) -> tuple[Example, ...]:
    """Return the same rows as `held_out_rows`, first those whose prompts are none of the `count` in-domain questions.

    Early stopping reads the first of them: a run is not scored on what it was stopped by, while there are others.
    """
    asked = {data.misaligned.held_out[index].context for index in _asked(data, count)}
    return tuple(sorted(held_out_rows(data, rows), key=lambda row: row.context in asked))


def _new_prompts(data: NarrowData, rows: Sequence[Example]) -> list[int]:
    """Return the places of the rows whose prompts no training row has, aligned or misaligned."""
    trained_on = {row.context for side in (data.aligned, data.misaligned) for row in side.train}
    return [index for index, row in enumerate(rows) if row.context not in trained_on]
