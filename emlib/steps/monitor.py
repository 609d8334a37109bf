"""What a monitor reads of a model in training, and its reading of a finished adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from emlib.config import Monitor
from emlib.core.errors import ProfileError
from emlib.core.step import Step, Work
from emlib.data.lazy import Rows
from emlib.data.sizes import Sizes, likely_tokens
from emlib.steps.answers import Answers
from emlib.steps.pool import Pool
from emlib.steps.specs import AdapterStep, Model, TrainingSpec
from emlib.steps.vectors import PersonaVectors


@dataclass(frozen=True)
class MonitorInputs(Step):
    """The fixed inputs of a monitor, tokenised: answers to general questions, rows, and directions of unit length."""

    stage: ClassVar = "monitor_inputs"
    version: ClassVar = 2

    model: Model
    held_out: Rows | None  # of which the first ones are read; None in reinforcement learning
    rows: int  # how many are read: held-out ones, and as many of the pool
    max_length: int
    answers: Answers | None = None  # the base model's; None: neither drift nor KL is read
    vectors: tuple[tuple[str, PersonaVectors], ...] = ()  # by the names of their traits, which readings have
    layers: tuple[int, ...] = ()  # at which the vectors are taken
    pool: Pool | None = None
    drawn: bool = False  # whether the model in training answers the questions as well

    @property
    def settings(self) -> dict[str, Any]:
        """Version 2: losses are read without an empty think block; where none may be, the key is version 1's."""
        blocks = self.held_out is not None and self.model.spec.may_think
        return super().settings | {"version": self.version_where(blocks)}

    @property
    def title(self) -> str:
        return f"what the monitor reads: {'answers' if self.held_out is None else self.held_out.title}"

    def check(self, facts: Mapping[str, Any]) -> None:
        """Refuse answers of which none can be read, before anything is trained that would ask for drift or KL.

        Raises:
            ProfileError: none can; the message says why.
        """
        if self.answers is None or facts["answers"]:
            return
        sampling = self.answers.evaluation.sampling
        why = "; ".join(f"{count}: {reason}" for reason, count in facts.get("left_out", {}).items()) or "not known why"
        raise ProfileError("A monitor has no answer of the untrained model to read the drift on: all of them, of "
                           f"{sampling.max_new_tokens} tokens at most, are left out ({why}). If the model thinks, "
                           "set enable_thinking: false (model.template.options) or raise monitor.tokens. Losses alone "
                           "need no answer (monitor.layers: [], and of early_stop drift: null).")

    def tokens(self, sizes: Sizes) -> int:
        """Estimate the tokens of one reading."""
        found = 0
        if self.held_out is not None:
            found = self.rows * min(self.held_out.size(sizes).tokens, self.max_length) * (1 if self.pool is None else 2)
        if self.answers is not None:
            evaluation = self.answers.evaluation
            asked = evaluation.questions.size(sizes)
            found += asked.rows * (likely_tokens(asked.prompt) + evaluation.sampling.max_new_tokens)
        return found


@dataclass(frozen=True)
class Monitored:
    """A training's monitor: what it reads, how often, and when it warns. It is no part of a key."""

    inputs: MonitorInputs
    settings: Monitor

    def cost(self, spec: TrainingSpec, sizes: Sizes) -> Work:
        """Estimate the forward passes of all readings, and the answers that are drawn."""
        steps = spec.steps or spec.training.plain_steps(spec.rows.size(sizes).rows)
        count = steps // self.settings.every + 2  # with the base model's, and that at the end
        drawn = self.settings.questions * self.settings.tokens if self.inputs.drawn else 0
        return Work(read=count * self.inputs.tokens(sizes), write=count * drawn)


@dataclass(frozen=True)
class FinalReading(AdapterStep):
    """A monitor's reading of the base model and of a finished adapter."""

    stage: ClassVar = "final_reading"

    monitor: MonitorInputs

    @property
    def title(self) -> str:
        assert self.adapter is not None, "the base model has no last step"
        return f"reading of {self.adapter.title}"

    def cost(self, sizes: Sizes) -> Work:
        return Work(read=2 * self.monitor.tokens(sizes))
