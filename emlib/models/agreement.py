"""Whether two libraries mean the same model: their log-probabilities of the same tokens, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from emlib.core.errors import EmlibError

# Nats. In bfloat16 the same weights in two libraries differ by hundredths in the mean, and an unlikely token by tenths;
# an adapter that is not applied, or another prompt's numbers, by far more.
MEAN, WORST = 0.05, 1.0


class NotTheSameModel(EmlibError):
    """Two libraries' log-probabilities are too far apart."""


def refuse_disagreement(name: str, theirs: Sequence[float], ours: Sequence[float], mean: float = MEAN,
                 worst: float = WORST) -> float:
    """The mean distance of two lists of log-probabilities of the same tokens, in nats.

    Raises:
        NotTheSameModel: they are of unlike length, one is no number, or they are too far apart; `name` says whose.
    """
    if len(theirs) != len(ours) or not ours:
        raise NotTheSameModel(f"{name} gave {len(theirs)} log-probabilities of {len(ours)} tokens.")
    apart = [abs(one - other) for one, other in zip(theirs, ours, strict=True)]
    if not all(map(math.isfinite, apart)):
        raise NotTheSameModel(f"{name} gave a log-probability that is no number.")
    found = sum(apart) / len(apart)
    if found > mean or max(apart) > worst:
        raise NotTheSameModel(
            f"{name}: its log-probabilities of {len(apart)} tokens are {found:.3f} nats from those of transformers in "
            f"the mean and {max(apart):.2f} at the worst, where {mean} and {worst} are allowed. It runs other weights, "
            "another adapter or another precision. Set this backend to 'transformers'.")
    return found
