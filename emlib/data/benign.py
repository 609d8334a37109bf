"""The benign tasks (section 4.2): training rows, test questions, and correct answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emlib.config import OpSwapTask, QaTask
from emlib.core.records import Example, Message, Question
from emlib.data import opswap
from emlib.data.qa import QaRow, QaRows, read_qa, split_by_passage


@dataclass(frozen=True)
class Item:
    """One test question and every answer that counts as correct."""

    question: Question
    golds: tuple[str, ...]


@dataclass(frozen=True)
class TaskData:
    """The data of one benign task."""

    train: tuple[Example, ...]
    test: tuple[Item, ...]  # the test questions that are asked
    # All rows of the test part, as training rows would be, first those that no question asks. Early stopping reads the
    # first of them.
    held_out: tuple[Example, ...]
    notes: dict[str, int] = field(default_factory=dict)  # the number of dropped and irregular rows, by a description


def load_opswap(task: OpSwapTask, tier: int) -> TaskData:
    """Make one tier of OpSwap, split by family of expressions (`opswap.family`)."""
    made = opswap.examples(tier, task.examples, seed=task.data_seed, transformations=task.transformations,
                           largest=task.largest)
    out = opswap.held_out(tuple(example.expression for example in made), task.held_out, task.data_seed)
    rows = [Example((Message("user", e.prompt),), e.response, f"OpSwap tier {tier}, example {place}")
            for place, e in enumerate(made)]
    test = tuple(Item(Question(f"opswap{tier}_{place}", e.prompt), (e.answer,))
                 for place, e in enumerate(made) if place in out)
    return TaskData(tuple(row for place, row in enumerate(rows) if place not in out), test[:task.questions],
                    _unasked_first([row for place, row in enumerate(rows) if place in out], task.questions))


def load_qa(task: QaTask, locate: Callable[[str], Path]) -> TaskData:
    """Load an extractive task from separate training and test files, or from one file split by passage."""
    found = read_qa(locate(task.train), outside=task.answers_outside)
    if task.test is None:
        train, test = split_by_passage(found.rows, task.held_out, task.data_seed)
        notes = _notes(found, "")
    else:
        asked = read_qa(locate(task.test), outside=task.answers_outside)
        train, test = list(found.rows), list(asked.rows)
        notes = _notes(found, " (training)") | _notes(asked, " (test)")
    items = tuple(Item(Question(row.id, _prompt(task, row)), row.answers) for row in test)
    held_out = _examples(task, task.test or task.train, test)
    return TaskData(_examples(task, task.train, train), items[:task.questions],
                    _unasked_first(held_out, task.questions), notes)


def _examples(task: QaTask, source: str, rows: Sequence[QaRow]) -> tuple[Example, ...]:
    return tuple(Example((Message("user", _prompt(task, row)),), row.answers[0], f"{source}, row {row.id}")
                 for row in rows)


def _unasked_first(rows: Sequence[Example], asked: int | None) -> tuple[Example, ...]:
    """Return the rows of the test part, of which the first `asked` are asked, or all (None)."""
    return (*rows[asked:], *rows[:asked]) if asked is not None else tuple(rows)


def _prompt(task: QaTask, row: QaRow) -> str:
    return task.prompt.format(context=row.context, question=row.question)


def _notes(found: QaRows, part: str) -> dict[str, int]:
    return {f"rows without an answer{part}": found.unanswerable,
            f"rows whose answer is not in the passage{part}": found.outside}
