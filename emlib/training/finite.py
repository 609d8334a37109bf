"""Refuses a training step whose loss, gradient or penalty is NaN or infinite, and says what to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from emlib.core.errors import EmlibError


def refuse_not_finite(step: int, steps: int, loss: float, norm: float, metrics: Mapping[str, float], log: Path,
                      data: str = "rows") -> None:
    """Raise EmlibError if step `step` (from 0) of `steps` is not finite: whose value is not, and what to do.

    `loss` is that of the `data` alone, and `metrics` has the penalties and the statistics of the defenses by name. At
    the first step no update has been made, so that the learning rate is no cause and there is no log.
    """
    if all(map(math.isfinite, (loss, norm, *metrics.values()))):
        return
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    said = "".join(f", '{name}' {metrics[name]}" for name in wrong)
    raise EmlibError(f"Step {step + 1} of {steps}: the loss is {loss}{said} and the gradient's norm {norm}. "
                     f"{_advice(step, loss, wrong, metrics, data)}{f'; the log so far is {log}' if step else ''}.")


def _advice(step: int, loss: float, wrong: list[str], metrics: Mapping[str, float], data: str) -> str:
    """Return what to do, the likeliest cause first; where the data's loss fails, so does all that is computed."""
    lower = "lower learning_rate, or " if step else ""
    if wrong and math.isfinite(loss):
        advice = f"{lower}look at what '{wrong[0]}' computes, such as a division by 0, or the logarithm of 0"
    elif metrics and math.isfinite(loss):
        names = " and ".join(f"'{name}'" for name in metrics)
        advice = f"{lower}look at the gradient of {names}, such as that of a root at 0"
    else:
        advice = f"{lower}check this step's {data}"
    return advice[0].upper() + advice[1:]
