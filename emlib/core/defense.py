"""The base class of all defenses: a defense has options, and hooks by which it changes training.

A subclass declares its `kind` as its first field, then its options, which a profile may set; class variables describe
it to tables, keys and training; and it overrides the hooks by which it acts:

    change_rows, filtered, held_out      the rows that are trained on
    added, penalised                     additional rows
    candidates, next_rows                additional rows that are chosen while the model is trained
    active                               a context around the trained model's forward and backward pass
    penalty, head_kl                     an additional loss term
    on_step                              after each step
    prepare, before, after               once: to load what these hooks need, to check the model, to change it at last
    system_prompt, grpo_beta, supervision   in reinforcement learning (GRPO) alone

`active`, `penalty` and `on_step` act in reinforcement learning, too.

Training calls these hooks on a list of defenses and knows no kind by name. `emlib/defenses/` has one module for each of
our defenses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import permutations
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from emlib.core import registry
from emlib.core.errors import ProfileError
from emlib.core.hook_errors import name_errors
from emlib.core.hooks import (
    FINE_TUNING,
    Active,
    Artefacts,
    Candidates,
    Evaluate,
    ForwardPass,
    HeadKl,
    PenaltyUnit,
    Recipes,
    Supervision,
    Trait,
)
from emlib.core.misspelt import near_hook, refuse_misspelt
from emlib.core.records import AddedRow, Example
from emlib.core.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

DEEPEST = 1000  # decoder blocks; no model has more
REFUSING = ("fits", "excludes")  # methods that refuse by an exception: it is no mistake of the author
ADD = {  # what to do in a profile without that section
    "own": "Add one, such as own: {file: my-data.csv}",
    "pool": "Add one, such as pool: {source: demo/pool.jsonl}",
    "audit": "Add one, such as audit: {layer: 15}",
    "grpo": "Reinforcement learning needs one; params/demo.yaml has it",
    "second_judge": "Add one to judge the answers twice",
}


class Defense(Strict):
    """One defense with its options. The module docstring lists what a subclass may declare.

    Attributes:
        label: what the paper's tables and figures (notebooks 15 and 16) call a method that is named after the kind. A
            method with another name keeps it, because two methods may use one kind.
        equation, origin: what it computes, and the paper or code that this comes from.
        swept: the option that a sweep varies. The same tables call a setting by its name, under the same condition.
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
        added_later: options that a key leaves out at their default, so that artefacts that were made before these
            options existed are still found.
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
    per: ClassVar[PenaltyUnit] = "token"
    wants_reference: ClassVar[bool] = False
    reads_hidden: ClassVar[bool] = True
    added_later: ClassVar[frozenset[str]] = frozenset()

    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Register the class under its kind.

        A misspelt hook of one that is not ours is refused, and errors inside its hooks name it and its line.
        """
        super().__pydantic_init_subclass__(**options)
        if not registry.is_ours(cls):
            refuse_misspelt(cls, Defense)
            name_errors(cls, (name for name, value in vars(Defense).items() if isinstance(value, FunctionType)
                              and not name.startswith("_") and name not in REFUSING))
        registry.enter(cls)

    # --- what keys and training read of every defense

    @property
    def identity(self) -> dict[str, Any]:
        """Its part of a key: its options, whatever their names, its version, and the source's digest if not ours."""
        fields, digest = type(self).model_fields, registry.source_digest(type(self))
        entry = {name: value for name, value in super().identity.items()
                 if name not in self.added_later or getattr(self, name) != fields[name].default}
        return {"options": entry, "version": self.version} | ({} if digest is None else {"source_code": digest})

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

    @property
    def has_gradient(self) -> bool:
        """Whether its penalty changes with the weights; if so, training refuses a penalty without a gradient."""
        return True

    @classmethod
    def has(cls, hook: str) -> bool:
        """Return whether the class overrides a hook."""
        return getattr(cls, hook) is not getattr(Defense, hook)

    @classmethod
    def acts_after(cls) -> bool:
        """Return whether it acts on the finished adapter alone: after the training and not in it."""
        return [hook for hook in FINE_TUNING if cls.has(hook)] == ["after"]

    @classmethod
    def why_inert(cls, hooks: Sequence[str]) -> str:
        """Return the reason to refuse a defense that overrides none of these hooks, with a near name of its own."""
        return f"overrides none of the hooks by which it could act here: {', '.join(hooks)}.{near_hook(cls, hooks)}"

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
        """Return the decoder blocks, counted from 1, that its options name; a profile refuses one above `count`.

        Where it has `active`, the first of them is the first one that it changes; without any, all are changed.
        """
        return self.reads_layers(count)

    def reads_nothing(self, count: int) -> bool:
        """Return whether it acts by a penalty that uses layers alone, and names none of a model of `count` blocks."""
        return self.has("penalty") and not (self.is_null or self.reads_hidden or self.reads_layers(count))

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
        """Return rows from which `next_rows` chooses during training; their places are spread through each epoch.

        `rows` has also those that `filtered` leaves out: the number of added rows depends on all fine-tuning rows.
        """
        return Candidates()

    def next_rows(self, count: int, step: int, steps: int,
                  losses: Callable[[], Sequence[float]]) -> Sequence[tuple[int, float]]:
        """Choose the `count` candidates of step `step` (from 0) of `steps`: each one's index, and a score for the log.

        Training asks before each step in which there is a place for one, and before the first one in any case, where
        `count` may be 0. `losses` computes the current loss on each candidate, in nats per token of its answer, without
        the contexts of `active`.
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
        """Inspect a finished step's record; return True to stop training.

        The record is a `StepRecord` of `emlib.training.records`, in reinforcement learning an `RlStep` of
        `emlib.training.rl.records`. There it comes after each RL step, `step` counts these alone, and no rows are held
        out.
        """
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


def require(profile: Any, section: str, wish: str) -> None:
    """Raise ValueError if a profile lacks a section; `wish` says what needs it, and what for."""
    if getattr(profile, section) is None:
        raise ValueError(f"{wish}, and there is no section '{section}'. {ADD[section]}")


def acting(defenses: Iterable[Defense]) -> list[Defense]:
    """Return those defenses that have an effect."""
    return [defense for defense in defenses if not defense.is_null]


def states(defenses: Iterable[Defense]) -> dict[str, Any]:
    """Return the defenses' states for a checkpoint, by kind."""
    return {defense.kind: state for defense in defenses if (state := defense.state())}


def restore(defenses: Iterable[Defense], found: Mapping[str, Any]) -> None:
    """Restore the defenses' states, as returned by `states`."""
    for defense in defenses:
        if defense.kind in found:
            defense.restore(found[defense.kind])


def left_out(defenses: Iterable[Defense], rows: Sequence[Example], artefacts: Artefacts) -> frozenset[int]:
    """Return the places of the rows that the defenses leave out of a training."""
    return frozenset(place for defense in acting(defenses) for place in defense.filtered(rows, artefacts))


def inactive(defenses: Iterable[Defense], engine: str) -> Iterator[str]:
    """Yield which defenses cannot act while completions are sampled, because the engine samples in another model."""
    for defense in defenses:
        if engine == "vllm" and defense.has("active") and "rollout" in defense.acts_in:
            yield (f"vLLM samples completions in a separate model, in which '{defense.kind}' cannot act. Choose engine "
                   "'transformers', or let its property `acts_in` name 'loss' alone")


def refuse_exclusions(defenses: Sequence[Defense]) -> None:
    """Raise ValueError for the first two defenses that make no sense together, with the reason."""
    for defense, other in permutations(defenses, 2):
        if reason := defense.excludes(other) or _cancels(defense, other):
            raise ValueError(f"the defenses '{defense.kind}' and '{other.kind}' cannot be combined: {reason}")


def _cancels(penalty: Defense, other: Defense) -> str:
    """Return why a penalty does not go with a change of the trained model's passes; empty if it does.

    It compares the outputs with the reference model's, or features of a layer that is changed; from features, training
    subtracts what `added_vectors` returns.
    """
    changed = other.has("active") and "loss" in other.acts_in
    if penalty.is_null or other.is_null or not (penalty.penalises_data and changed):
        return ""
    if penalty.has("head_kl"):
        return _cancelled(penalty, other, "outputs", ". A KL term with 'on: pool' compares the model without it")
    if penalty.grpo_beta > 0 or (penalty.wants_reference and penalty.reads_hidden):
        return _cancelled(penalty, other, "outputs", "")
    first = min(other.named_layers(DEEPEST), default=1)
    read = penalty.reads_layers(DEEPEST) if penalty.wants_reference and not other.has("added_vectors") else ()
    if max(read, default=0) < first:
        return ""
    advice = f". Let it read only layers before layer {first}" if first > 1 else ""
    return _cancelled(penalty, other, "features", advice)


def _cancelled(penalty: Defense, other: Defense, what: str, advice: str) -> str:
    return (f"'{other.kind}' changes the {what} of the trained model, and '{penalty.kind}' compares them with those of "
            f"the reference model, which it does not change, so that the adapter learns to cancel the change{advice}")


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
