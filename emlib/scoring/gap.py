"""The relative loss gap of section 3.2, and the ranking by it.

    s_d = (mean_k L_k(d) - L(d)) / (L(d) + epsilon)            (equations 5 and 6)

L_k is the answer-only mean-token NLL (equation 4) under the k-th misaligned model, L the same under the aligned one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def gap(aligned: float, misaligned: Sequence[float], epsilon: float) -> float:
    """Compute equation 6 for one row, losses in nats per token; NaN where one of them is NaN or infinite.

    Raises:
        ValueError: there is no misaligned loss, or epsilon is not above 0.
    """
    if not misaligned or not epsilon > 0:
        raise ValueError("a gap needs the loss of at least one misaligned model, and an epsilon above 0")
    if not all(math.isfinite(loss) for loss in (aligned, *misaligned)):
        return math.nan
    return (math.fsum(misaligned) / len(misaligned) - aligned) / (aligned + epsilon)


def ranking(scores: Sequence[float]) -> list[int]:
    """Return the indices of the rows, the highest score first; ties in the pool's order. Rows with NaN are left out."""
    ranked = [place for place, score in enumerate(scores) if not math.isnan(score)]
    return sorted(ranked, key=lambda place: (-scores[place], place))
