"""The defenses of section 3, and the methods that are made of them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from emlib.config.methods import Kinded, SweptMethod
from emlib.config.words import Positive, Share, Weight, no_repeats


class Kl(Kinded):
    """KL to the reference model (equation 1). `tokens` are those whose next-token distributions are compared.

    `reference: stored` keeps the reference model's last hidden states on disk, so that other weights and seeds on the
    same rows do without its pass. Together with LDIFS, which needs that pass in any case, it gains nothing.
    """

    kind: Literal["kl"]
    weight: Weight = 0.1
    tokens: Literal["all", "response"] = "all"
    reference: Literal["computed", "stored"] = "computed"


class Ldifs(Kinded):
    """L2 distance in feature space (equation 2), at every `every`-th layer or at the layers that are listed.

    `variant: published` reproduces features detached from the graph, as public code of a co-author has them: it adds to
    the loss and has no gradient.
    """

    kind: Literal["ldifs"]
    weight: Weight = 1.0
    every: Positive = 5
    layers: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    normalize: bool = False
    variant: Literal["gradient", "published"] = "gradient"

    def layers_of(self, count: int) -> tuple[int, ...]:
        """The layers to compare in a model of `count` layers, counted from 1."""
        return self.layers if self.layers is not None else tuple(range(self.every, count + 1, self.every))


class PersonaVector(Kinded):
    """Preventive steering: `strength` times the trait's vector is added to the output of `layer`, in training only."""

    kind: Literal["persona_vector"]
    strength: Weight = 5.0
    layer: Positive = 20


class Inoculation(Kinded):
    """Another system prompt, in training only; None: the trait's own."""

    kind: Literal["inoculation"]
    prompt: Annotated[str, Field(min_length=1)] | None = None


class Interleaving(Kinded):
    """Rows of the profile's pool between the fine-tuning rows (section 3.2), `fraction` of them for each of these.

    `choose` tells the paper's variants apart: `random` is Interleaving, `score` is Interleaving+ (equations 5 and 6),
    `score_without_refusals` is Interleaving++. With `answers: on_policy` the model answers the pool's prompts itself.
    Together with other defenses: a penalty and a persona vector act on all rows of a step, whichever their origin; an
    inoculation prompt is put on the fine-tuning rows alone, since it is their behaviour that it is to explain.
    """

    kind: Literal["interleaving"]
    fraction: Share = 0.05
    choose: Literal["random", "score", "score_without_refusals"] = "random"
    answers: Literal["pool", "on_policy"] = "pool"

    @property
    def scored(self) -> bool:
        """Whether the pool's rows have to be scored by misaligned models first."""
        return self.choose != "random"


Defense = Annotated[Kl | Ldifs | PersonaVector | Inoculation | Interleaving, Field(discriminator="kind")]
SWEPT = {"kl": "weight", "ldifs": "weight", "persona_vector": "strength", "interleaving": "fraction"}
BASELINES = ("untrained", "aligned", "misaligned")
SFT = "sft"  # plain fine-tuning on a benign task, as Table 3 calls it


class Method(SweptMethod[Defense]):
    """One condition of the study: a baseline, or a name for a list of defenses on the misaligned data.

    `seeds` are other seeds than those of the section that the method stands in.
    """

    baselines: ClassVar = (*BASELINES, SFT)
    numbers: ClassVar = SWEPT

    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None

    @field_validator("sweep", "seeds")
    @classmethod
    def _once(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if values is None else no_repeats(values)
