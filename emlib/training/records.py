"""Records of a training run: a log line per step, and a summary. Reading them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from emlib.core.files import read_appended

LOG = "log.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One line of the log. `loss` is the mean cross-entropy over the step's response tokens, in nats.

    `penalties` holds the metrics of the step's defenses: `kl` in nats per token, `ldifs` the squared distance per token
    (or in the unit of its option `per`), `shift` the measured norm of what steering added. `seconds` include what its
    defenses computed after the step, and `scored` are the tokens of the candidates that they scored before it.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    response_tokens: int
    seconds: float
    penalties: dict[str, float] = field(default_factory=dict)
    scored: int = 0


@dataclass(frozen=True)
class TrainingSummary:
    """Totals of a training run over all its sessions; the peak memory is that of the last session, in MiB.

    `how` describes the last session's methods, with reasons: whether `rows` were packed, whether blocks were
    `recomputed` (gradient checkpointing), and how the `head` processed its logits. A defense may have ended training
    before `planned_steps`, and may have chosen rows from candidates that it scored: `scored_tokens` in all.
    """

    steps: int
    tokens: int
    seconds: float
    final_loss: float
    optimizer: str
    truncated_rows: int
    peak_memory: float | None = None
    how: dict[str, str] = field(default_factory=dict)
    planned_steps: int | None = None
    scored_tokens: int = 0


def read_log(folder: Path, steps: int | None = None) -> list[StepRecord]:
    """Read the log of a run, a record per step; with `steps` the first ones, without later lines of a killed run."""
    return read_appended(folder / LOG, StepRecord, steps)
