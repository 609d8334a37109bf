"""What a defense is: options, and what it does to training. A class of its own for each kind.

A subclass names its `kind` as its first field, then its options, which are what a profile may say; class variables tell
what tables, keys and training need to know of it; and it overrides the hooks by which it acts:

    change_rows, held_out           the rows that are trained on
    added, penalised                rows beside them
    active                          around the trained model's forward and backward pass
    penalty, head_kl                a term of the loss
    on_step, after                  after each step, and after the last one
    system_prompt, grpo_beta, active, supervision        in reinforcement learning (GRPO)

Training asks a list of defenses at each of these moments and names none. `emlib/defenses/` holds ours, a module each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from emlib.core import registry
from emlib.core.errors import ProfileError
from emlib.core.records import AddedRow, Example
from emlib.core.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

Denominator = Literal["token", "response_token", "row"]
Artefacts = Mapping[str, Path]  # the folder of each artefact that a defense needs, by the name that it gave it
FINE_TUNING = ("change_rows", "held_out", "added", "penalised", "active", "penalty", "head_kl", "on_step", "after")
GRPO = ("system_prompt", "grpo_beta", "active", "supervision")


class Trait(Protocol):
    """What of a trait a defense may use."""

    @property
    def inoculation_prompt(self) -> str:
        """The system prompt that asks for the trait."""


class ForwardPass(Protocol):
    """What a forward pass of the trained or of the reference model shows to a penalty.

    A row has a line of its own, padded on the right, or all rows are packed into one line. The reference's tensors have
    no gradient.
    """

    @property
    def hidden(self) -> Tensor:
        """The hidden states after the final norm: (lines, seq, hidden)."""

    @property
    def features(self) -> Mapping[int, Tensor]:
        """The output of each decoder block that was asked for by `reads_layers`: (lines, seq, hidden)."""

    def by_row(self, layer: int) -> list[Tensor]:
        """The same for each row, without padding: (positions, hidden)."""

    @property
    def response_logits(self) -> Tensor:
        """The logits that predict response tokens, computed when they are first asked for: (tokens, vocabulary)."""


class Active(Protocol):
    """What `active` yields: statistics of the passes that it was around, each a mean over positions."""

    @property
    def statistics(self) -> Mapping[str, float]:
        """By name, as they stand in the training's log."""


class StoredStates(Protocol):
    """The reference model's last hidden states, kept on disk."""

    def of(self, batch: Any) -> Tensor:
        """Those of a batch's rows, one after the other: (tokens compared, hidden)."""


class Recipes(Protocol):
    """How a defense asks for artefacts to be made: each method returns what stands for one in the study."""

    def vector(self) -> Any:
        """The trait's persona vectors: a folder for `emlib.steering.extraction.load`."""

    def reference(self, spec: Any, tokens: Literal["all", "response"]) -> Any:
        """The reference model's states on the rows of a training: a folder for `emlib.models.reference`."""

    def pool_rows(self, spec: Any, *, fraction: float, choose: Any, answers: str) -> Any:
        """Rows of the profile's pool, in the order in which they are taken: a folder with `added.jsonl`."""


@dataclass(frozen=True)
class HeadKl:
    """KL to the reference model, computed in closed form together with cross-entropy.

    Attributes:
        weight: of the mean over tokens.
        tokens: whose next-token distributions are compared.
        states: the reference model's last hidden states, where they are kept on disk and spare its pass.
    """

    weight: float
    tokens: Literal["all", "response"]
    states: StoredStates | None = None


@dataclass(frozen=True)
class Supervision:
    """Supervised steps between RL steps: `share` of all steps, on `rows` rows of a source (None: all)."""

    source: str
    rows: int | None
    share: float


class Defense(Strict):
    """One defense with its options. See the module for what a subclass may say.

    Attributes:
        label: what tables and figures call it.
        equation, origin: what it computes, and where that is from.
        swept: the option that a sweep replaces.
        version: raised when it computes something else from the same options.
        null: options at which it does nothing; training leaves it out there.
        data_only: whether it changes the data alone, so that a fine-tuning service can be given it.
        cost: what it costs beside plain fine-tuning, in a sentence.
        in_grpo: the class that serves reinforcement learning, perhaps this one; None: it does not work there.
        listed: whether profiles reach it by its kind; else it is reached through `in_grpo`.
        per: what `penalty` is a sum over, by which training divides it.
        wants_reference: whether `penalty` looks at the reference model's pass.
        not_in_keys: options that other entries of a key tell.
        acts_in: the passes of reinforcement learning that `active` is around.
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
    listed: ClassVar[bool] = True
    per: ClassVar[Denominator] = "token"
    wants_reference: ClassVar[bool] = False
    not_in_keys: ClassVar[frozenset[str]] = frozenset()

    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Enter the class into the registry under its kind."""
        super().__pydantic_init_subclass__(**options)
        registry.enter(cls)

    # --- what keys and training ask of any defense

    @property
    def identity(self) -> dict[str, Any]:
        """What a key says of it: its options, a version above 1, and the digest of its source if it is not ours."""
        said = self.model_dump(mode="json", exclude=set(self.not_in_keys))
        said |= {"version": self.version} if self.version > 1 else {}
        digest = registry.source_digest(type(self))
        return said | ({} if digest is None else {"source": digest})

    @property
    def is_null(self) -> bool:
        """Whether its options are those at which it does nothing."""
        return bool(self.null) and all(getattr(self, name) == value for name, value in self.null.items())

    @property
    def factor(self) -> float:
        """What its penalty is multiplied by: its option `weight`, or 1 where it has none."""
        return float(self.weight) if "weight" in type(self).model_fields else 1.0  # type: ignore[attr-defined]

    @classmethod
    def has(cls, hook: str) -> bool:
        """Whether it overrides a hook."""
        return getattr(cls, hook) is not getattr(Defense, hook)

    # --- what it needs

    def fits(self, section: Any, method: str) -> None:
        """Look at the profile, or at its section `grpo`, that `method` with this defense stands in.

        Raises:
            ValueError: the defense cannot work there; the message says why.
        """

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        """Artefacts to be made before training, by a name each; `spec` is the training."""
        return {}

    def reads_layers(self, count: int) -> tuple[int, ...]:
        """The decoder blocks whose outputs `penalty` looks at in a model of `count` blocks, counted from 1."""
        return ()

    # --- hooks of fine-tuning

    def change_rows(self, rows: Sequence[Example], trait: Trait) -> Sequence[Example]:
        """The rows to train on, in the place of these."""
        return rows

    def held_out(self, rows: Sequence[Example]) -> Sequence[Example]:
        """Those of the rows that are not trained on, and that `evaluate` of `on_step` measures the loss on."""
        return ()

    def added(self, rows: Sequence[Example], artefacts: Artefacts) -> Sequence[AddedRow]:
        """Rows to train on beside these, spread through each epoch."""
        return ()

    def penalised(self, rows: Sequence[Example], artefacts: Artefacts) -> Sequence[Example]:
        """Rows beside these, spread through each epoch, on which this defense's penalty counts and nothing else."""
        return ()

    def active(self, model: nn.Module, artefacts: Artefacts) -> AbstractContextManager[Active]:
        """A context around each forward and backward pass of the trained model, and around no reference pass."""
        raise NotImplementedError

    def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
        """A term of the loss, as an unweighted sum over a forward pass: a scalar.

        Training divides it by the number of `per` of the whole step, and multiplies it by the option `weight`. The
        reference's pass is made where `wants_reference` says so.
        """
        raise NotImplementedError

    def head_kl(self, artefacts: Artefacts) -> HeadKl | None:
        """KL to the reference model as a term of the loss, which the head computes in closed form."""
        return None

    def on_step(self, record: Any, evaluate: Callable[[], float]) -> bool:
        """Look at a finished step's record (`emlib.training.records.StepRecord`); True ends the training here.

        `evaluate` computes the mean loss on the rows that were held out, in nats a response token.
        """
        return False

    def after(self, model: nn.Module, artefacts: Artefacts) -> None:
        """Change the trained model once, after the last step."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it, as JSON; kept in private attributes (`pydantic.PrivateAttr`)."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""

    # --- hooks of reinforcement learning

    def system_prompt(self, system: str, trait: Trait) -> str:
        """The system prompt to train with, in the place of this one."""
        return system

    @property
    def grpo_beta(self) -> float:
        """The weight of GRPO's own KL term to the reference model."""
        return 0.0

    @property
    def acts_in(self) -> tuple[Literal["loss", "rollout"], ...]:
        """The passes that `active` is around: those that take the loss, those that draw completions."""
        return ("loss", "rollout")

    @property
    def supervision(self) -> Supervision | None:
        """Supervised steps between the RL steps."""
        return None


class GrpoDefense(Defense):
    """The options of a kind in reinforcement learning, where they differ: reached through `in_grpo` of that kind."""

    listed: ClassVar[bool] = False


def needs_of(defenses: Sequence[Defense], recipes: Recipes, spec: Any) -> dict[str, Any]:
    """What several defenses need together, by name.

    Raises:
        ProfileError: two of them mean different artefacts by one name.
    """
    found: dict[str, Any] = {}
    for defense in defenses:
        for name, needed in defense.needs(recipes, spec).items():
            if name in found and found[name] != needed:
                raise ProfileError(f"the defense '{defense.kind}' and another one need different artefacts that they "
                                   f"both call '{name}'. Rename one of them.")
            found[name] = needed
    return found
