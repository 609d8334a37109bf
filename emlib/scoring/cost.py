"""The cost of scoring a pool relative to the fine-tuning that uses it (equation 10, Appendix E)."""

from __future__ import annotations


def overhead(scorers: int, fine_tuning_rows: float, candidates: float, ratio: float, runs: int) -> float:
    """Compute the seconds of scoring per second of fine-tuning.

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
