"""The defenses of section 3, and the methods that are made of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from emlib.config.words import Positive, Share, Weight, no_repeats
from emlib.errors import nearest
from emlib.strict import Strict


class Kl(Strict):
    """KL to the reference model (equation 1). `tokens` are those whose next-token distributions are compared.

    `reference: stored` keeps the reference model's last hidden states on disk, so that other weights and seeds on the
    same rows do without its pass. Together with LDIFS, which needs that pass in any case, it gains nothing.
    """

    kind: Literal["kl"]
    weight: Weight = 0.1
    tokens: Literal["all", "response"] = "all"
    reference: Literal["computed", "stored"] = "computed"


class Ldifs(Strict):
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


class PersonaVector(Strict):
    """Preventive steering: `strength` times the trait's vector is added to the output of `layer`, in training only."""

    kind: Literal["persona_vector"]
    strength: Weight = 5.0
    layer: Positive = 20


class Inoculation(Strict):
    """Another system prompt, in training only; None: the trait's own."""

    kind: Literal["inoculation"]
    prompt: Annotated[str, Field(min_length=1)] | None = None


class Interleaving(Strict):
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


class Method(Strict):
    """One condition of the study: a baseline, or a name for a list of defenses on the misaligned data.

    `sweep` replaces the number of the first defense that has one (its weight or strength), a run for each. `seeds` are
    other seeds than those of the section that the method stands in.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_+]*$")]
    defenses: tuple[Defense, ...] = ()
    sweep: tuple[Weight, ...] = ()
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None

    @field_validator("sweep", "seeds")
    @classmethod
    def _once(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if values is None else no_repeats(values)

    @model_validator(mode="after")
    def _fits(self) -> Method:
        if (self.name in (*BASELINES, SFT)) == bool(self.defenses):
            raise ValueError(f"method '{self.name}' " + ("is a baseline and takes no defenses" if self.defenses else
                             "has no defenses; without them a method is one of " + ", ".join(BASELINES)
                             + nearest(self.name, BASELINES)))
        if self.sweep and self._swept() is None:
            raise ValueError(f"method '{self.name}' has a sweep, and none of its defenses has a number to sweep")
        kinds = [defense.kind for defense in self.defenses]
        repeated = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if repeated:
            raise ValueError(f"method '{self.name}' has more than one {repeated[0]}: they would contradict each other")
        self._sweep_fits()
        return self

    def _sweep_fits(self) -> None:
        """Each swept number is checked as if it stood in the defense itself."""
        place = self._swept()
        if place is None:
            return
        defense = self.defenses[place]
        for number in self.sweep:
            try:
                type(defense).model_validate(defense.model_dump() | {SWEPT[defense.kind]: number})
            except ValidationError as error:
                raise ValueError(f"method '{self.name}' sweeps {SWEPT[defense.kind]} over {number:g}: "
                                 f"{error.errors()[0]['msg'].lower()}") from error

    def at(self, setting: float | None) -> tuple[Defense, ...]:
        """The defenses with the swept number set to `setting`."""
        place = self._swept()
        if setting is None or place is None:
            return self.defenses
        changed = self.defenses[place].model_copy(update={SWEPT[self.defenses[place].kind]: setting})
        return (*self.defenses[:place], changed, *self.defenses[place + 1:])

    def _swept(self) -> int | None:
        return next((place for place, defense in enumerate(self.defenses) if defense.kind in SWEPT), None)
