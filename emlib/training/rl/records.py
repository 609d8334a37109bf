"""Records of a reinforcement learning run: its steps, some completions, and the choice of the best weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from emlib.core.files import read_appended

STEPS = "grpo.jsonl"
COMPLETIONS = "completions.jsonl"


@dataclass(frozen=True)
class RlStep:
    """One RL step. `step` counts all optimizer steps, supervised ones included; rewards are of this step's completions.

    Attributes:
        parts: each part of the reward: its mean and standard deviation over the completions.
        unscored: the share of completions that could not be scored.
        right: the share of the scored ones with the right answer.
        length: mean tokens of a completion.
        cut: the share of completions that reached the token limit.
        no_spread: the share of groups with equal rewards, whose advantages are all 0.
        clipped: the share of tokens whose probability ratio was clipped.
        gap: the mean distance |log p - log p'| of a token under sampler and loss, in nats. vLLM's p' is that after
            top_p truncation, p divided by the mass that is kept, so that the distance is not 0 with top_p below 1.
        kl: the estimate of the KL to the reference model in nats per token; None where beta is 0.
        shift: the measured norm of what steering added in the loss and in the rollouts.
        penalties: the penalty of each defense, by kind, per unit of it and not weighted.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    reward: float | None
    reward_sd: float | None
    parts: dict[str, tuple[float, float]]
    unscored: float
    right: float | None
    length: float
    cut: float
    no_spread: float
    clipped: float
    gap: float
    kl: float | None
    shift: dict[str, float]
    completions: int
    tokens: int
    seconds: float
    drawing_seconds: float
    penalties: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """A completion that is kept for inspection; `parts` are those of its reward, None if it was not scored."""

    step: int
    question: str
    answer: str
    text: str
    reward: float | None
    right: bool | None
    parts: dict[str, float] | None = None


@dataclass(frozen=True)
class Stretch:
    """Consecutive RL steps up to a checkpoint.

    Attributes:
        steps: the RL steps done at its end.
        reward: the mean of the steps' mean rewards.
        right: the share of all completions with the right answer; one without a reward counts as wrong, as a held-out
            answer does.
    """

    steps: int
    reward: float
    right: float


def read_steps(folder: Path, steps: int | None = None) -> list[RlStep]:
    """Read the log of a run; with `steps` its first records, without later lines of a killed run."""
    return read_appended(folder / STEPS, RlStep, steps)


def stretches(steps: Sequence[RlStep], every: int) -> list[Stretch]:
    """Split the log into stretches of `every` RL steps; the last may be shorter. A wholly unscored one is left out."""
    found = []
    for start in range(0, len(steps), every):
        part = steps[start:start + every]
        rewards = [step.reward for step in part if step.reward is not None]
        if rewards:
            right = sum((step.right or 0.0) * (1 - step.unscored) * step.completions for step in part)
            found.append(Stretch(start + len(part), fmean(rewards), right / sum(step.completions for step in part)))
    return found


def best(steps: Sequence[RlStep], every: int) -> Stretch | None:
    """Return the stretch with the highest training reward, the first of equals (B.3 evaluates its checkpoint)."""
    return max(stretches(steps, every), key=lambda stretch: stretch.reward, default=None)
