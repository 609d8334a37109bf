"""What several tests make up: rows, a kernel for packed ones, how far vectors are apart."""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emlib.data.chat import Encoded
from emlib.models.kernels.varlen import Rows
from emlib.steering import extraction
from emlib.steering.extraction import PersonaVectors

_FOLDERS = tempfile.TemporaryDirectory()
atexit.register(_FOLDERS.cleanup)


def planted(vector: Tensor, layers: int = 4) -> dict[str, Path]:
    """What a defense that needs the persona vector is given: a folder in which each layer has this one."""
    folder = Path(tempfile.mkdtemp(dir=_FOLDERS.name))
    extraction.save(PersonaVectors(vector.expand(layers + 1, -1).contiguous(), 1, 1), folder)
    return {"vector": folder}


def some_rows(count: int = 7, seed: int = 0) -> list[Encoded]:
    """Rows of 8 to 20 random tokens, of which the last 3 to 6 count."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length, response = int(random.integers(8, 21)), int(random.integers(3, 7))
        rows.append(Encoded(random.integers(0, 256, length), np.arange(length) >= length - response, False))
    return rows


ROUNDING = 1e-5  # of a vector in float32: each sum rounds to 6e-8, and layer after layer makes some 1e-6 of that


def apart(found: Tensor, expected: Tensor) -> float:
    """How far vectors are apart, as a share of the second's length.

    Not number by number: one in which larger ones cancel has their rounding, which depends on the order of sums that a
    processor prefers for a shape, and for which no tolerance of its own is right.
    """
    return float((found - expected).norm() / expected.norm())


def a_row_at_a_time(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float,
                    window: int | None) -> Tensor:
    """What the kernel for packed rows has to compute, by torch's attention of one row after the other."""
    out = []
    for q, k, v in zip(*(side.split(rows.ends.diff().tolist()) for side in (query, key, value)), strict=True):
        back = torch.arange(len(q))[:, None] - torch.arange(len(q))
        mask = None if window is None else (back >= 0) & (back < window)
        out.append(F.scaled_dot_product_attention(
            *(side.transpose(0, 1)[None] for side in (q, k, v)), attn_mask=mask, is_causal=mask is None, scale=scale,
            enable_gqa=True)[0].transpose(0, 1))
    assert rows.longest == max(map(len, out))
    return torch.cat(out)
