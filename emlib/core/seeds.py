"""Random numbers by name: every draw in the study comes from a base seed and the words that say what it is for."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and every name, and on nothing else.

    Two draws with different names are independent, and adding a new one moves none of the others.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the draw called `names` under `seed`."""
    return np.random.default_rng(derive(seed, *names))
