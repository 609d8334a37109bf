"""Records of scoring and choosing rows. Reading them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowLosses:
    """The losses of one row of the pool in nats per token; None is NaN. `misaligned` has one loss per scorer."""

    place: int
    aligned: float | None
    misaligned: list[float | None]
    tokens: int


@dataclass(frozen=True)
class Ranked:
    """One row of the pool, with its rank under one way of choosing.

    Attributes:
        place: index in the pool, from 0.
        where: file and line of the row.
        rank: from 1, the first to be taken; None: never taken, for the given reason.
        score: equation 6; None where nothing was scored, or where the score is NaN.
        aligned, misaligned: the losses from which the score is computed, the second a mean over models.
        reason: the reason for the rank, or for its absence.
    """

    place: int
    where: str
    rank: int | None
    score: float | None
    aligned: float | None
    misaligned: float | None
    reason: str


@dataclass(frozen=True)
class Declining:
    """A judge's score for one row of the pool: how far its answer declines, 0-100, or None with the reason."""

    place: int
    score: float | None
    reason: str | None
