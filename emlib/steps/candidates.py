"""Rows of the pool from which a training chooses while it runs (interleaving with `choose: online`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from emlib.data.sizes import Sizes
from emlib.steps.pool import AddedRows


@dataclass(frozen=True)
class CandidateRows(AddedRows):
    """The first rows of an order, until their tokens amount to `share` times the fine-tuning rows' in all epochs.

    Training takes `fraction` times as many rows as the fine-tuning rows from them in each epoch, and computes their
    losses at its start and `rescored` times later.
    """

    stage: ClassVar = "candidate_rows"

    share: float = 0.0
    rescored: int = 0
    epochs: int = 1
    unmoved: int = field(default=0, compare=False)  # rows of the first steps, after which no weight has changed

    @property
    def least(self) -> int:
        """The fewest candidates: as many as are trained on between two scorings, so that none is repeated there."""
        return -(-self.count * self.epochs // (self.rescored + 1))

    @property
    def settings(self) -> dict[str, Any]:
        return {"selection": self.selection.key, "rows": self.among.digest, "share": self.share,
                "fraction": self.fraction, "rescored": self.rescored, "epochs": self.epochs}

    def as_input(self, name: str) -> dict[str, Any]:
        """Return these settings, with a version where the first candidate has its place after the first change.

        The losses at the start were once computed at that place, and so were not those before training.
        """
        first = len(self.among.examples) // (self.count + 1)
        return {name: self.settings | ({"version": 2} if first >= self.unmoved else {})}

    def scored(self, sizes: Sizes) -> int:
        """Estimate the tokens that a training reads to score the candidates."""
        trained, pool = self.among.size(sizes), self.selection.pool.size(sizes)
        once = min(self.share * self.epochs * trained.rows * trained.tokens, pool.rows * pool.tokens)
        return int((self.rescored + 1) * once)

    @property
    def title(self) -> str:
        return f"candidates {self.selection.order}, for {self.fraction:g} of rows"
