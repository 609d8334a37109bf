"""Named random streams: a base seed and the names of its purpose determine every random draw of the study."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends only on `seed` and the names.

    Draws with different names are independent, so that adding one changes none of the others.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator for the draw `names` with the base seed `seed`."""
    return np.random.default_rng(derive(seed, *names))


def chosen(items: Sequence[Item], count: int | None, seed: int, *names: str) -> list[Item]:
    """Return a random choice of `count` items, in their order; all of them if `count` is None or too large."""
    if count is None or count >= len(items):
        return list(items)
    places = generator(seed, *names).permutation(len(items))[:count]
    return [items[place] for place in sorted(places.tolist())]


def some_of(items: Sequence[Item], count: int | None, what: str) -> list[Item]:
    """Return `count` of the items (None: all), chosen by a fixed seed: the same in every run and study."""
    return chosen(items, count, 0, "checks", what)
