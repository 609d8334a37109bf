"""What the hooks of a defense are given and may return (`emlib.core.defense`): passes, artefacts, rows, loss terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from emlib.core.records import AddedRow

if TYPE_CHECKING:
    from torch import Tensor

PenaltyUnit = Literal["token", "response_token", "row", "step"]
Artefacts = Mapping[str, Path]  # the folder of each artefact that a defense needs, by the name it chose in `needs`
FINE_TUNING = ("change_rows", "filtered", "held_out", "added", "penalised", "next_rows", "active", "penalty", "head_kl",
               "on_step", "after")
GRPO = ("system_prompt", "grpo_beta", "active", "penalty", "supervision", "on_step")


class Trait(Protocol):
    """The part of a trait that a defense may use."""

    @property
    def inoculation_prompt(self) -> str:
        """The system prompt that asks for the trait."""


class ForwardPass(Protocol):
    """One forward pass of the trained or of the reference model, as a penalty sees it.

    Each row is one line of the batch, padded on the right, or all rows are packed into one line. The reference model's
    tensors have no gradient.
    """

    @property
    def hidden(self) -> Tensor:
        """The hidden states after the final norm: (lines, seq, hidden)."""

    @property
    def features(self) -> Mapping[int, Tensor]:
        """The output of each decoder block that `reads_layers` names: (lines, seq, hidden).

        Vectors that a defense adds to the residual stream (`Defense.added_vectors`) are subtracted again.
        """

    @property
    def keys(self) -> Sequence[str]:
        """A digest of each row's tokens, in the order of `by_row`."""

    def by_row(self, layer: int) -> list[Tensor]:
        """Split a layer's features by row, without padding: (positions, hidden) each."""

    @property
    def response_logits(self) -> Tensor:
        """The logits that predict response tokens, computed on first access: (tokens, vocabulary)."""


class Active(Protocol):
    """What `active` yields: statistics of the passes inside the context."""

    @property
    def statistics(self) -> Mapping[str, float | Tensor]:
        """The statistics by name, as the training log has them.

        Each is a mean over positions, or the last pass's values at all its positions, (lines, seq), which training
        averages without padding.
        """


class Evaluate(Protocol):
    """How `on_step` looks at the model between two steps, as it will be used: without the defenses' contexts."""

    @property
    def steps(self) -> int:
        """The number of steps of the whole training, unless a defense stops it; in reinforcement learning, RL steps.

        In an attack, which takes a few further steps after a training, it is larger than any number of steps.
        """

    def __call__(self) -> float:
        """Compute the mean loss on the rows of `held_out`, in nats per token of their answers."""

    def reading(self, step: int) -> Any:
        """Read the model by the artefact that `needs` calls `monitor_inputs`: an `emlib.evaluation.records.Reading`."""


class StoredStates(Protocol):
    """The reference model's last hidden states, stored on disk."""

    def of(self, batch: Any) -> Tensor:
        """Return the states of a batch's rows, concatenated: (compared tokens, hidden)."""


class Recipes(Protocol):
    """How a defense requests artefacts: each method returns the step that makes one."""

    def vector(self) -> Any:
        """Request the trait's persona vectors: a folder for `emlib.steering.extraction.load`."""

    def components(self, spec: Any, layers: tuple[int, ...], on: Literal["data", "pool"]) -> Any:
        """Request principal components of what plain fine-tuning changes: for `emlib.steering.components.load`."""

    def reference(self, spec: Any, tokens: Literal["all", "response"]) -> Any:
        """Request the reference model's states on the training rows: a folder for `emlib.models.reference`."""

    def reference_projections(self, spec: Any, layers: tuple[int, ...]) -> Any:
        """Request the projections of these states at layers onto the trait's vectors: a folder for the same."""

    def trait_adapter(self, source: str | None, rows: int | None, random: bool) -> Any:
        """Request an adapter that is trained on the trait, or a random one: for `emlib.models.second_adapter.read`."""

    def row_audit(self, spec: Any) -> Any:
        """Request the projection difference of each row, before defenses change it: a folder with `audit.jsonl`."""

    def monitor_inputs(self, spec: Any, settings: Any) -> Any:
        """Request what a monitor with these settings reads (`emlib.config.Monitor`): for `Evaluate.reading`.

        It reads losses, and the drift at layers; in reinforcement learning, where `spec` is None, the drift alone.
        """

    def final_reading(self, spec: Any, inputs: Any) -> Any:
        """Request the readings of the base model and of plain fine-tuning: for `records.read_readings`."""

    def wrapped_rows(self, spec: Any, fraction: float, prompt: str | None) -> Any:
        """Request the base model's answers to the pool's questions, under a system prompt: with `added.jsonl`.

        `prompt` None stands for the trait's inoculation prompt. The model answers without it.
        """

    def pool_rows(self, spec: Any, *, fraction: float, choose: Any, answers: str) -> Any:
        """Request rows of the profile's pool, in the order of selection: a folder with `added.jsonl`."""

    def virtuous_rows(self, spec: Any, *, fraction: float, choose: Any, layer: int, strength: float,
                      checked: bool) -> Any:
        """Request the same rows with answers of the base model, steered against the trait and checked by the judge."""

    def candidate_rows(self, spec: Any, *, fraction: float, share: float, rescored: int) -> Any:
        """Request rows of the profile's pool from which training chooses some: a folder with `added.jsonl`."""


@dataclass(frozen=True)
class HeadKl:
    """KL divergence from the reference model, computed in closed form together with cross-entropy."""

    weight: float  # of the mean over tokens
    tokens: Literal["all", "response"]  # whose next-token distributions are compared
    states: StoredStates | None = None  # the reference model's last hidden states; None: its forward pass is run


@dataclass(frozen=True)
class Candidates:
    """Rows from which `Defense.next_rows` chooses during training: `count` in each epoch."""

    rows: Sequence[AddedRow] = ()
    count: int = 0


@dataclass(frozen=True)
class Supervision:
    """Supervised steps between RL steps: `share` of all steps, on `rows` rows of a source (None: all rows)."""

    source: str
    rows: int | None
    share: float
