"""The order in which a pool's rows are taken: at random, or by score, with or without refusals (section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emlib.core.records import Example
from emlib.core.seeds import generator
from emlib.scoring.gap import gap, ranking
from emlib.scoring.refusals import NOTHING, Filtered


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


def at_random(rows: Sequence[Example], unfit: Mapping[int, str], seed: int) -> list[Ranked]:
    """Rank for Interleaving: all usable rows, in an order determined by the seed."""
    order = [place for place in generator(seed, "interleaved rows").permutation(len(rows)).tolist()
             if place not in unfit]
    first = [Ranked(place, rows[place].where, rank, None, None, None, f"number {rank} of {len(order)} in random order")
             for rank, place in enumerate(order, start=1)]
    return first + [Ranked(place, rows[place].where, None, None, None, None, reason) for place, reason in unfit.items()]


def by_score(rows: Sequence[Example], found: Sequence[RowLosses], unfit: Mapping[int, str], epsilon: float,
             refusals: Filtered = NOTHING) -> list[Ranked]:
    """Rank for Interleaving+: the highest score first; for Interleaving++ without the `refusals` of a filter."""
    scores = [_score(row, epsilon) for row in found]
    unscored = {place: "no score: its loss is no number under one of the models"
                for place, value in enumerate(scores) if math.isnan(value)}
    never = dict(refusals.refused) | unscored | dict(unfit)
    ranked = [place for place in ranking(scores) if place not in never]

    def entry(place: int, rank: int | None, reason: str) -> Ranked:
        row, value = found[place], scores[place]
        known = [loss for loss in row.misaligned if loss is not None]
        mean = math.fsum(known) / len(known) if len(known) == len(row.misaligned) else None
        return Ranked(place, rows[place].where, rank, None if math.isnan(value) else value, row.aligned, mean, reason)

    first = [entry(place, rank, f"score number {rank} of {len(ranked)}{refusals.unjudged.get(place, '')}")
             for rank, place in enumerate(ranked, start=1)]
    return first + [entry(place, None, never[place]) for place in sorted(never)]


def _score(row: RowLosses, epsilon: float) -> float:
    numbers = [math.nan if loss is None else loss for loss in (row.aligned, *row.misaligned)]
    return gap(numbers[0], numbers[1:], epsilon)
