"""Rows that several tests make up."""

from __future__ import annotations

import numpy as np

from emlib.data.chat import Encoded


def some_rows(count: int = 7, seed: int = 0) -> list[Encoded]:
    """Rows of 8 to 20 random tokens, of which the last 3 to 6 count."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length, response = int(random.integers(8, 21)), int(random.integers(3, 7))
        rows.append(Encoded(random.integers(0, 256, length), np.arange(length) >= length - response, False))
    return rows
