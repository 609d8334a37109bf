"""Random numbers by name: every draw in the study comes from a base seed and the words that say what it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and every name, and on nothing else.

    Two draws with different names are independent, and adding a new one moves none of the others.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the draw called `names` under `seed`."""
    return np.random.default_rng(derive(seed, *names))


def some_of(items: Sequence[Item], count: int | None, what: str) -> list[Item]:
    """`count` of the items in their order, the same ones every time; None, or more than there are, for all."""
    if count is None or count >= len(items):
        return list(items)
    places = generator(0, "checks", what).permutation(len(items))[:count]
    return [items[place] for place in sorted(places.tolist())]
