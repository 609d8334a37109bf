"""What scoring and choosing leave to read. Reading it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowLosses:
    """The losses of one row of the pool in nats a token; None is no number. `misaligned` has one for each scorer."""

    place: int
    aligned: float | None
    misaligned: list[float | None]
    tokens: int


@dataclass(frozen=True)
class Ranked:
    """One row of the pool, as one way of choosing sees it.

    Attributes:
        place: in the pool, counted from 0.
        where: file and line the row came from.
        rank: from 1, the first to be taken; None: never taken, for the reason given.
        score: equation 6; None where nothing was scored, or where the score is no number.
        aligned, misaligned: the two losses it is made of.
        reason: why the row stands where it stands.
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
    """What a judge says of one row of the pool: how far its answer declines, 0-100, or None with the reason."""

    place: int
    score: float | None
    reason: str | None
