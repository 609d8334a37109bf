"""The base class of all defenses: a defense has options, and hooks by which it changes training.

A subclass declares its `kind` as its first field, then its options, which a profile may set; class variables describe
it to tables, keys and training; and it overrides the hooks by which it acts:

    change_rows, filtered, held_out the rows that are trained on
    added, penalised                additional rows
    candidates, next_rows           additional rows that are chosen while the model is trained
    active                          a context around the trained model's forward and backward pass
    penalty, head_kl                an additional loss term
    on_step, after                  after each step, and after the last one
    prepare, before                 once before training, to load what these hooks need and to check the model
    system_prompt, grpo_beta, active, penalty, supervision        in reinforcement learning (GRPO)

Training calls these hooks on a list of defenses and knows no kind by name. `emlib/defenses/` has one module for each of
our defenses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from emlib.core import registry
from emlib.core.errors import ProfileError
from emlib.core.records import AddedRow, Example
from emlib.core.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

Denominator = Literal["token", "response_token", "row", "step"]
Artefacts = Mapping[str, Path]  # the folder of each artefact that a defense needs, by the name it chose in `needs`
FINE_TUNING = ("change_rows", "filtered", "held_out", "added", "penalised", "next_rows", "active", "penalty", "head_kl",
               "on_step", "after")
GRPO = ("system_prompt", "grpo_beta", "active", "penalty", "supervision")


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

    def __call__(self) -> float:
        """Compute the mean loss on the rows of `held_out`, in nats per response token."""

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
        """Request what a monitor with these settings reads (`emlib.config.Monitor`): for `Evaluate.reading`."""

    def final_reading(self, spec: Any, inputs: Any) -> Any:
        """Request the readings of the base model and of plain fine-tuning: for `records.read_readings`."""

    def wrapped_rows(self, spec: Any, fraction: float, prompt: str | None) -> Any:
        """Request the base model's answers to the pool's questions, under a system prompt: with `added.jsonl`."""

    def pool_rows(self, spec: Any, *, fraction: float, choose: Any, answers: str) -> Any:
        """Request rows of the profile's pool, in the order of selection: a folder with `added.jsonl`."""

    def virtuous_rows(self, spec: Any, *, fraction: float, choose: Any, layer: int, strength: float,
                      checked: bool) -> Any:
        """Request the same rows with answers of the base model, steered against the trait and checked by the judge."""

    def candidate_rows(self, spec: Any, *, fraction: float, share: float, rescored: int) -> Any:
        """Request rows of the profile's pool from which training chooses some: a folder with `added.jsonl`."""


@dataclass(frozen=True)
class HeadKl:
    """KL divergence from the reference model, computed in closed form together with cross-entropy.

    Attributes:
        weight: the weight of the mean over tokens.
        tokens: the tokens whose next-token distributions are compared.
        states: the reference model's last hidden states on disk, which save its forward pass; None: it is run.
    """

    weight: float
    tokens: Literal["all", "response"]
    states: StoredStates | None = None


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


class Defense(Strict):
    """One defense with its options. The module docstring lists what a subclass may declare.

    Attributes:
        label: the name in tables and figures.
        equation, origin: what it computes, and the paper or code that this comes from.
        swept: the option that a sweep varies.
        version: a number to raise when the same options compute something else.
        null: option values at which it has no effect; training then leaves it out.
        data_only: whether it changes only the data, so that it also works with a fine-tuning service.
        cost: what it costs on top of plain fine-tuning, in a sentence.
        in_grpo: the class for reinforcement learning, perhaps this one; None: it does not work there.
        not_in_grpo: why it does not work there.
        listed: whether profiles can name its kind; otherwise it is reached through `in_grpo`.
        per: the unit that `penalty` sums over; training divides the sum by the number of units in the optimizer step,
            which is 1 for `step`.
        wants_reference: whether `penalty` uses the reference model's forward pass.
        reads_hidden: whether `penalty` uses `hidden` or `response_logits`; where no defense does, the reference
            model's pass ends at the deepest layer that `reads_layers` names.
        not_in_keys: options that a key leaves out because its other entries determine them.
        added_later: options that a key leaves out at their default, because keys without them exist.
        acts_in: the passes of reinforcement learning that `active` wraps.
    """

    label: ClassVar[str] = ""
    equation: ClassVar[str] = ""
    origin: ClassVar[str] = ""
    swept: ClassVar[str | None] = None
    version: ClassVar[int] = 1
    null: ClassVar[Mapping[str, Any]] = {}
    data_only: ClassVar[bool] = False
    cost: ClassVar[str] = ""
    in_grpo: ClassVar[type[Defense] | None] = None
    not_in_grpo: ClassVar[str] = ""
    listed: ClassVar[bool] = True
    per: ClassVar[Denominator] = "token"
    wants_reference: ClassVar[bool] = False
    reads_hidden: ClassVar[bool] = True
    not_in_keys: ClassVar[frozenset[str]] = frozenset()
    added_later: ClassVar[frozenset[str]] = frozenset()

    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Register the class under its kind."""
        super().__pydantic_init_subclass__(**options)
        registry.enter(cls)

    # --- what keys and training read of every defense

    @property
    def identity(self) -> dict[str, Any]:
        """Its part of a key: its options, a version above 1, and the digest of its source if it is not ours."""
        fields = type(self).model_fields
        defaults = {name for name in self.added_later if getattr(self, name) == fields[name].default}
        entry = self.model_dump(mode="json", exclude=set(self.not_in_keys) | defaults)
        entry |= {"version": self.version} if self.version > 1 else {}
        digest = registry.source_digest(type(self))
        return entry | ({} if digest is None else {"source": digest})

    @property
    def is_null(self) -> bool:
        """Whether its options make it have no effect."""
        return bool(self.null) and all(getattr(self, name) == value for name, value in self.null.items())

    @property
    def factor(self) -> float:
        """The factor of its penalty: its option `weight`, or 1 without such an option."""
        return float(self.weight) if "weight" in type(self).model_fields else 1.0  # type: ignore[attr-defined]

    @property
    def runs_reference(self) -> bool:
        """Whether training runs the reference model for it; not where its states are on disk."""
        return self.wants_reference or self.has("head_kl")

    @property
    def penalises_data(self) -> bool:
        """Whether its loss term counts on the training rows, and not only on those that `penalised` returns."""
        return True

    @classmethod
    def has(cls, hook: str) -> bool:
        """Return whether the class overrides a hook."""
        return getattr(cls, hook) is not getattr(Defense, hook)

    @classmethod
    def acts_after(cls) -> bool:
        """Return whether it acts on the finished adapter alone: after the training and not in it."""
        return [hook for hook in FINE_TUNING if cls.has(hook)] == ["after"]

    # --- what it needs

    def fits(self, section: Any, method: str) -> None:
        """Check that this defense, as part of `method`, works with the profile or with its section `grpo`.

        Raises:
            ValueError: it does not; the message gives the reason.
        """

    def excludes(self, other: Defense) -> str:
        """Return why this defense and `other` make no sense in one method; empty if they do.

        It is enough if one of the two knows the reason.
        """
        return ""

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        """Return the artefacts to make before the training `spec`, by a name of its choice."""
        return {}

    def prepare(self, artefacts: Artefacts) -> None:
        """Load what the hooks need from the artefacts, once before training; private attributes hold it."""

    def reads_layers(self, count: int) -> tuple[int, ...]:
        """Return the decoder blocks, counted from 1, whose outputs `penalty` uses in a model of `count` blocks."""
        return ()

    def named_layers(self, count: int) -> tuple[int, ...]:
        """Return the decoder blocks, counted from 1, that its options name; a profile refuses one above `count`."""
        return self.reads_layers(count)

    # --- hooks of fine-tuning

    def change_rows(self, rows: Sequence[Example], trait: Trait) -> Sequence[Example]:
        """Return the rows to train on instead of these."""
        return rows

    def filtered(self, rows: Sequence[Example], artefacts: Artefacts) -> Collection[int]:
        """Return the places of rows that are not trained on. `rows` are those after all defenses changed them."""
        return ()

    def held_out(self, rows: Sequence[Example]) -> Sequence[Example]:
        """Return the rows to hold out of training; `evaluate` in `on_step` computes the loss on them."""
        return ()

    def added(self, rows: Sequence[Example], artefacts: Artefacts) -> Sequence[AddedRow]:
        """Return additional rows to train on, spread through each epoch."""
        return ()

    def penalised(self, rows: Sequence[Example], artefacts: Artefacts) -> Sequence[Example]:
        """Return additional rows, spread through each epoch, on which only this defense's penalty is computed."""
        return ()

    def candidates(self, rows: Sequence[Example], artefacts: Artefacts) -> Candidates:
        """Return rows from which `next_rows` chooses during training; their places are spread through each epoch."""
        return Candidates()

    def next_rows(self, count: int, step: int, steps: int,
                  losses: Callable[[], Sequence[float]]) -> Sequence[tuple[int, float]]:
        """Choose the `count` candidates of step `step` (from 0) of `steps`: each one's index, and a score for the log.

        Training asks before each step in which there is a place for one. `losses` computes the current loss on each
        candidate, in nats per response token, without the contexts of `active`.
        """
        raise NotImplementedError

    def active(self, model: nn.Module, artefacts: Artefacts) -> AbstractContextManager[Active]:
        """Return a context for each forward and backward pass of the trained model; reference passes run outside it."""
        raise NotImplementedError

    def added_vectors(self, artefacts: Artefacts) -> Mapping[int, Tensor]:
        """Return the vectors that `active` adds to the outputs of decoder blocks, by layer: (hidden,) each.

        Penalties see the trained model's features without them: from that layer on, the residual stream carries the
        vector, and the reference model is never steered.
        """
        return {}

    def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
        """Compute an additional loss term, as an unweighted sum over a forward pass: a scalar.

        Training divides it by the number of `per` units in the whole step, and multiplies it by the option `weight`.
        The reference model's pass is run only if `wants_reference` is true.
        """
        raise NotImplementedError

    def head_kl(self, artefacts: Artefacts) -> HeadKl | None:
        """Return a KL loss term to the reference model, which is computed in closed form at the head, or None."""
        return None

    def on_step(self, record: Any, evaluate: Evaluate) -> bool:
        """Inspect a finished step's record (`emlib.training.records.StepRecord`); return True to stop training."""
        return False

    def before(self, model: nn.Module, artefacts: Artefacts) -> None:
        """Check the model once, before the first step; what it does not suit is refused before a long training."""

    def after(self, model: nn.Module, artefacts: Artefacts) -> None:
        """Change the trained model once, after the last step."""

    def state(self) -> dict[str, Any]:
        """Return its state for a checkpoint, as JSON; private attributes (`pydantic.PrivateAttr`) hold it."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""

    # --- hooks of reinforcement learning

    def system_prompt(self, system: str, trait: Trait) -> str:
        """Return the system prompt to train with instead of this one."""
        return system

    @property
    def grpo_beta(self) -> float:
        """The weight of GRPO's own KL term to the reference model."""
        return 0.0

    @property
    def acts_in(self) -> tuple[Literal["loss", "rollout"], ...]:
        """The passes that `active` wraps: those that compute the loss, those that sample completions."""
        return ("loss", "rollout")

    @property
    def supervision(self) -> Supervision | None:
        """Supervised steps between the RL steps."""
        return None


class GrpoDefense(Defense):
    """A defense for reinforcement learning whose options differ from fine-tuning's; its kind names it in `in_grpo`."""

    listed: ClassVar[bool] = False

    def fits(self, section: Any, method: str) -> None:
        """Check that the engine lets the defense act in the passes that sample completions, if it is active there."""
        if self.has("active") and "rollout" in self.acts_in and section.engine == "vllm":
            raise ValueError(f"method '{method}': vLLM samples completions in a separate model, in which "
                             f"'{self.kind}' cannot act. Choose engine 'transformers'")


def refuse_exclusions(defenses: Sequence[Defense]) -> None:
    """Refuse defenses that make no sense together.

    Raises:
        ValueError: for the first such pair, with the reason.
    """
    for defense, other in permutations(defenses, 2):
        if reason := defense.excludes(other):
            raise ValueError(f"the defenses '{defense.kind}' and '{other.kind}' cannot be combined: {reason}")


def needs_of(defenses: Sequence[Defense], recipes: Recipes, spec: Any) -> dict[str, Any]:
    """Collect the artefacts that several defenses need, by name.

    Raises:
        ProfileError: two defenses use one name for different artefacts.
    """
    found: dict[str, Any] = {}
    for defense in defenses:
        for name, needed in defense.needs(recipes, spec).items():
            if name in found and found[name] != needed:
                raise ProfileError(f"the defense '{defense.kind}' and another one need different artefacts under one "
                                   f"name, '{name}'. Rename one of them in `needs`.")
            found[name] = needed
    return found
