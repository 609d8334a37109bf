"""The relative loss gap of section 3.2, the ranking by it, and what scoring costs.

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


def overhead(scorers: int, fine_tuning_rows: float, candidates: float, ratio: float, runs: int) -> float:
    """Compute the seconds of scoring a pool per second of the fine-tuning that uses it (equation 10, Appendix E).

        (K + 1) n_interleave / (R n_FT n_runs)

    Each of the K + 1 models passes once over the candidates; each of the runs trains on its rows once, which costs R
    times a pass. The printed equation has n_FT and n_interleave exchanged: see `as_printed`.

    Args:
        scorers: K, the misaligned models.
        fine_tuning_rows: n_FT, rows that a run trains on, times its epochs.
        candidates: n_interleave, rows that are scored.
        ratio: R, a row's cost in training over its cost in scoring.
        runs: n_runs, fine-tuning runs that share the scores.
    """
    return (scorers + 1) * candidates / (ratio * fine_tuning_rows * runs)


def as_printed(scorers: int, fine_tuning_rows: float, candidates: float, ratio: float, runs: int) -> float:
    """Compute equation 10 as printed. It falls as the number of scored rows grows, so it is probably a misprint."""
    return (scorers + 1) * fine_tuning_rows / (ratio * candidates * runs)
