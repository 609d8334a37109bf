"""Rows that a defense chooses while the model is trained (`Defense.next_rows`), and the record of its choices.

A choice depends on the trained weights, so that a resumed run repeats it: the defense's state is in the checkpoint, and
of the record those lines are kept that belong to the steps before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from emlib.core.files import append_record, read_appended, write_records
from emlib.data.chat import Encoded
from emlib.training.losses import row_losses
from emlib.training.objective import Objective
from emlib.training.ranks import Ranks

CHOSEN = "chosen.jsonl"


@dataclass(frozen=True)
class Offered:
    """Candidates, of which the defense of a `kind` chooses `count` in each epoch."""

    rows: Sequence[Encoded] = ()
    count: int = 0
    kind: str = ""

    @property
    def largest(self) -> list[Encoded]:
        """The longest candidate in each place of an epoch, which bounds the memory that a step needs."""
        return [max(self.rows, key=lambda row: len(row.input_ids))] * self.count if self.count else []


@dataclass(frozen=True)
class ChosenRow:
    """One line of the record: the step, counted from 1, for which a candidate was chosen, its digest and its score."""

    step: int
    candidate: int
    digest: str
    score: float


class Choosing:
    """The choices of one training, recorded in a file of `folder` by the first rank. `done` steps are over."""

    def __init__(self, offered: Offered, steps: int, folder: Path, done: int, ranks: Ranks) -> None:
        self.offered, self.steps, self.path, self.ranks = offered, steps, folder / CHOSEN, ranks
        if offered.count and ranks.first:
            kept = [line for line in read_appended(self.path, ChosenRow) if line.step <= done]
            write_records(self.path, kept)

    def rows(self, count: int, number: int, model: nn.Module, objective: Objective,
             batch_size: int) -> tuple[list[Encoded], dict[str, float], int]:
        """Return the `count` rows that are chosen for step `number` (from 0), the metric of their scores, and a size.

        The size is the tokens of the candidates whose losses the defense asked for. Of equal ones one is computed.
        The defense is asked before the first step also where no row has a place there: a loss that it compares later
        ones with is that of the untrained model.
        """
        if not self.offered.count or (number and not count):
            return [], {}, 0
        read = 0

        def losses() -> list[float]:
            nonlocal read
            read += sum(len(row.input_ids) for row in {row.key: row for row in self.offered.rows}.values())
            return row_losses(model, self.offered.rows, batch_size, self.ranks)

        chosen = objective.of_kind(self.offered.kind).next_rows(count, number, self.steps, losses)
        for place, score in chosen if self.ranks.first else ():
            append_record(self.path, ChosenRow(number + 1, place, self.offered.rows[place].key, score))
        return [self.offered.rows[place] for place, _ in chosen], {} if not count else {
            f"{self.offered.kind} score": sum(score for _, score in chosen) / count}, read
