"""Checks that two libraries run the same model, by their log-probabilities of the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from emlib.core.errors import EmlibError

# Nats. In bfloat16 the same weights in two libraries differ by hundredths on average, by tenths for unlikely tokens; a
# missing adapter or the numbers of another prompt differ by far more.
MEAN, WORST = 0.05, 1.0


class NotTheSameModel(EmlibError):
    """Two libraries' log-probabilities are too far apart."""


def refuse_disagreement(name: str, theirs: Sequence[float], ours: Sequence[float], mean: float = MEAN) -> float:
    """Return the mean distance of two lists of log-probabilities of the same tokens, in nats.

    Raises:
        NotTheSameModel: their lengths differ, a value is not finite, or they are too far apart; `name` is the library.
    """
    if len(theirs) != len(ours) or not ours:
        raise NotTheSameModel(f"{name} gave {len(theirs)} log-probabilities of {len(ours)} tokens.")
    distances = [abs(one - other) for one, other in zip(theirs, ours, strict=True)]
    if not all(map(math.isfinite, distances)):
        raise NotTheSameModel(f"{name} gave a log-probability that is no number.")
    found = sum(distances) / len(distances)
    if found > mean or max(distances) > WORST:
        raise NotTheSameModel(
            f"{name}: its log-probabilities of {len(distances)} tokens differ from those of transformers by "
            f"{found:.3f} nats on average and by {max(distances):.2f} at most, where {mean} and {WORST} are allowed. "
            "It runs other weights, another adapter or another precision. Set this backend to 'transformers'.")
    return found
