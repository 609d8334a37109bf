"""What scoring a pool costs beside the fine-tuning that it serves (equation 10, Appendix E)."""

from __future__ import annotations


def overhead(scorers: int, fine_tuning_rows: float, candidates: float, ratio: float, runs: int) -> float:
    """Seconds of scoring for each second of fine-tuning.

        (K + 1) n_interleave / (R n_FT n_runs)

    Each of the K + 1 models passes once over the candidates; each of the runs trains on its rows once, which costs R
    times a pass. Here it differs from the print, which has n_FT and n_interleave exchanged: see `as_printed`.

    Args:
        scorers: K, the misaligned models.
        fine_tuning_rows: n_FT, rows that a run trains on, times its epochs.
        candidates: n_interleave, rows that are scored.
        ratio: R, a row's cost in training over its cost in scoring.
        runs: n_runs, fine-tuning runs that share the scores.
    """
    return (scorers + 1) * candidates / (ratio * fine_tuning_rows * runs)


def as_printed(scorers: int, fine_tuning_rows: float, candidates: float, ratio: float, runs: int) -> float:
    """Equation 10 by the letter. It falls where there is more to score, so that it cannot be what was meant."""
    return (scorers + 1) * fine_tuning_rows / (ratio * candidates * runs)
