"""Interleaving: the positions of added rows among the fine-tuning rows of an epoch (section 3.2).

    n + round(f n) rows per epoch, f the fraction and n the number of fine-tuning rows

The fine-tuning rows keep the order that they have without interleaving.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TypeVar

from emlib.core.errors import DataError
from emlib.core.seeds import generator

Row = TypeVar("Row")


def rows_to_add(rows: int, fraction: float) -> int:
    """Return round(fraction * rows); Python rounds an exact half to the even number.

    Raises:
        DataError: the fraction is not above 0 and at most 1, or amounts to no row.
    """
    if not 0 < fraction <= 1:
        raise DataError(f"The fraction of interleaved rows is {fraction:g}; expected a number above 0 and at most 1.")
    count = round(fraction * rows)
    if count == 0:
        raise DataError(f"A fraction of {fraction:g} of {rows} fine-tuning rows amounts to no row: the run would equal "
                        f"`misaligned`. Choose {1 / rows:.2g} or more.")
    return count


def interleave(order: Sequence[int], added: Sequence[int]) -> list[int]:
    """Return one epoch: `added` spread uniformly through `order`; both keep their order.

    m added rows leave m + 1 gaps, including both ends; the sizes of the gaps differ by at most one row.
    """
    gaps = len(added) + 1
    mixed: list[int] = []
    for gap in range(gaps):
        mixed += order[gap * len(order) // gaps:(gap + 1) * len(order) // gaps]
        mixed += added[gap:gap + 1]
    return mixed


def enough(candidates: Sequence[Row], count: int, what: str) -> list[Row]:
    """Return the first `count` candidates; raise DataError if there are fewer, with how many are missing."""
    if len(candidates) < count:
        raise DataError(f"{what}: {count} rows are needed, but only {len(candidates)} are usable: "
                        f"{count - len(candidates)} are missing. Choose a larger pool (pool.source, pool.rows) or a "
                        "smaller fraction.")
    return list(candidates[:count])


def plan_steps(rows: int, rows_per_step: int, epochs: int, seed: int, added: int = 0,
               steps: int | None = None) -> list[list[int]]:
    """Return the row indices of every optimizer step; each epoch has another order, and its last step may be smaller.

    `added` additional rows, numbered from `rows` on, are shuffled separately and spread through each epoch (section
    3.2); the fine-tuning rows keep the order that they have without them. With `steps` there are exactly so many, in as
    many epochs as that takes.
    """
    if steps is not None:
        epochs = ceil(steps / max(1, ceil((rows + added) / rows_per_step)))
    plan = []
    for epoch in range(epochs):
        order = generator(seed, "order", epoch).permutation(rows).tolist()
        if added:
            others = rows + generator(seed, "order of added rows", epoch).permutation(added)
            order = interleave(order, others.tolist())
        plan += [order[start:start + rows_per_step] for start in range(0, len(order), rows_per_step)]
    return plan[:steps]
