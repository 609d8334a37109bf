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
    if not 0 < count < len(rows):
        raise DataError(f"Holding out {held_out:.0%} of {len(rows)} rows leaves the training or the held-out part "
                        "empty.")
    out = set(generator(seed, "split").permutation(len(rows))[:count].tolist())
    return [r for i, r in enumerate(rows) if i not in out], [r for i, r in enumerate(rows) if i in out]


def load_domain(name: str, domain: Domain, locate: Callable[[str], Path]) -> NarrowData:
    """Read and split one domain; `locate` turns a source's name into a file."""
    seed = domain.split_seed
    sides = [Split(*map(tuple, split(chosen(rows, domain.rows, seed, "rows"), domain.held_out, seed)))
             for rows in read_domain(domain, locate)]
    return NarrowData(name, *sides)


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
    """
    rows = data.misaligned.held_out
    new = set(_new_prompts(data, rows))
    order = generator(0, "in-domain questions").permutation(len(rows)).tolist()
    places: dict[tuple[Message, ...], int] = {}
    for index in order:
        if index in new:
            places.setdefault(rows[index].context, index)
    return [Question.of(f"{data.name}_{index}", rows[index]) for index in sorted(list(places.values())[:count])]


def held_out_rows(data: NarrowData, rows: Sequence[Example]) -> tuple[Example, ...]:
    """Return those of the held-out `rows` whose prompts do not occur in training rows, as for in-domain questions.

    All of them where each prompt is trained on, as in a set that repeats a few prompts: there is no other loss then.
    """
    return tuple(rows[index] for index in _new_prompts(data, rows)) or tuple(rows)


def _new_prompts(data: NarrowData, rows: Sequence[Example]) -> list[int]:
    """Return the places of the rows whose prompts no training row has, aligned or misaligned."""
    trained_on = {row.context for side in (data.aligned, data.misaligned) for row in side.train}
    return [index for index, row in enumerate(rows) if row.context not in trained_on]
