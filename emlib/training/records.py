"""What a training run leaves to read: a line a step, and a summary. Reading it needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

LOG = "log.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One line of the log. `loss` is the mean cross-entropy over the step's response tokens, in nats.

    `penalties` holds what the step's defenses say of themselves: `kl` in nats a token, `ldifs` the distance a token,
    `shift` the measured norm of what steering added.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    response_tokens: int
    seconds: float
    penalties: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingSummary:
    """What a training run amounted to, over all its sittings; the peak of memory is that of the last one, in MiB.

    `how` tells in words what the last one went by, and why: whether `rows` were packed, whether blocks were
    `recomputed`, how the `head` went through its logits.
    """

    steps: int
    tokens: int
    seconds: float
    final_loss: float
    optimizer: str
    truncated_rows: int
    peak_memory: float | None = None
    how: dict[str, str] = field(default_factory=dict)


def read_log(folder: Path, steps: int | None = None) -> list[StepRecord]:
    """Return the log of a run, a record a step; or of its first `steps`, whatever a killed run left after them."""
    path = folder / LOG
    lines = path.read_text().splitlines() if path.is_file() else []
    return [StepRecord(**json.loads(line)) for line in lines[:steps]]
