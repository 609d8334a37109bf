"""Reinforcement learning by GRPO, with and without the defenses. Defaults: Table 8 and appendix B.3 of the paper."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from emlib.config.defenses import Inoculation
from emlib.config.evaluation import Sampling
from emlib.config.training import Training
from emlib.config.words import Positive, Weight
from emlib.errors import nearest
from emlib.strict import Strict


class Beta(Strict):
    """The KL term of GRPO to the reference model (Table 9), `weight` times a token's estimate."""

    kind: Literal["kl"]
    weight: Weight = 0.1


class Steering(Strict):
    """Equation 9: `strength` times the trait's vector is added to the output of `layer`, in training only.

    `steer` names the passes that feel it: those that draw the completions, those that take the loss, or both. Where
    they differ the loss is taken under another policy than the one that was sampled; the log tells how far apart.
    """

    kind: Literal["persona_vector"]
    strength: Weight = 5.0
    layer: Positive = 20
    steer: Literal["loss", "rollout", "both"] = "both"


class Alternation(Strict):
    """Supervised steps between the RL steps (section 4.2): `share` of all optimizer steps, on rows of `source`.

    `source` is any instruction data, as for a pool; `rows` of them are drawn (None: all).
    """

    kind: Literal["interleaving"]
    source: str
    rows: Positive | None = None
    share: Annotated[float, Field(ge=0, lt=1)] = 0.2


def supervised_steps(rl_steps: int, share: float) -> int:
    """How many supervised steps make `share` of all steps; they come on top of the RL steps."""
    return round(rl_steps * share / (1 - share))


RlDefense = Annotated[Beta | Steering | Alternation | Inoculation, Field(discriminator="kind")]
RL_SWEPT = {"kl": "weight", "persona_vector": "strength", "interleaving": "share"}
RL_BASELINES = ("untrained", "grpo")


class RlMethod(Strict):
    """One condition: `untrained`, plain `grpo`, or a name for a list of defenses.

    `sweep` replaces the number of the first defense that has one, a run for each.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_+]*$")]
    defenses: tuple[RlDefense, ...] = ()
    sweep: tuple[Weight, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> RlMethod:
        if (self.name in RL_BASELINES) == bool(self.defenses):
            raise ValueError(f"method '{self.name}' " + ("is a baseline and takes no defenses" if self.defenses else
                             "has no defenses; without them a method is one of " + ", ".join(RL_BASELINES)
                             + nearest(self.name, RL_BASELINES)))
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
                type(defense).model_validate(defense.model_dump() | {RL_SWEPT[defense.kind]: number})
            except ValidationError as error:
                raise ValueError(f"method '{self.name}' sweeps {RL_SWEPT[defense.kind]} over {number:g}: "
                                 f"{error.errors()[0]['msg'].lower()}") from error

    def at(self, setting: float | None) -> tuple[RlDefense, ...]:
        """The defenses with the swept number set to `setting`."""
        place = self._swept()
        if setting is None or place is None:
            return self.defenses
        changed = self.defenses[place].model_copy(update={RL_SWEPT[self.defenses[place].kind]: setting})
        return (*self.defenses[:place], changed, *self.defenses[place + 1:])

    def _swept(self) -> int | None:
        return next((place for place, defense in enumerate(self.defenses) if defense.kind in RL_SWEPT), None)


class Gsm8k(Strict):
    """Grade-school arithmetic. `eval_items` None: the whole test set, 1,319 (B.3 says both that and 100)."""

    kind: Literal["gsm8k"]
    train_items: Positive = 1000
    eval_items: Positive | None = 100


class Additions(Strict):
    """All sums of two single digits, 100 in all: for small models."""

    kind: Literal["additions"]
    train_items: Annotated[int, Field(gt=0, lt=100)] = 60
    eval_items: Annotated[int, Field(gt=0, lt=100)] = 40

    @model_validator(mode="after")
    def _disjoint(self) -> Additions:
        if self.train_items + self.eval_items > 100:
            raise ValueError(f"there are 100 additions of single digits, and {self.train_items} to train on and "
                             f"{self.eval_items} held out are more")
        return self


class RuleRewards(Strict):
    """The four parts by rule: free, exact, the same at every run. The paper has an LLM judge."""

    kind: Literal["rule"]


class RlTraining(Training):
    """The optimizer of GRPO. Only the defaults are others: Table 8's, and TRL's own where it is silent.

    `batch_size` counts completions, as Table 8 does. `checkpoint_every` is also how often the weights are judged by the
    training reward since the last time; the best are evaluated (B.3).
    """

    batch_size: Positive = 4
    gradient_accumulation: Positive = 4
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    checkpoint_every: Positive = 25


# Ours; the paper shows the two lines of the format and says that they stand in the system prompt (B.3).
FORMAT_PROMPT = ("You solve problems whose answer is a number. First think, then answer, in exactly this format:\n"
                 "<think> your thinking </think>\n<answer> a single number </answer>")


class Grpo(Strict):
    """GRPO with each condition. Defaults: Table 8, B.3; TRL's where the paper is silent.

    `prompt` is the system prompt that asks for the format.
    """

    data: Annotated[Gsm8k | Additions, Field(discriminator="kind")]
    methods: Annotated[tuple[RlMethod, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    prompt: Annotated[str, Field(min_length=1)] = FORMAT_PROMPT
    rewards: RuleRewards = RuleRewards(kind="rule")
    training: RlTraining = RlTraining()
    generations: Annotated[int, Field(ge=2)] = 4
    sampling: Sampling = Sampling(temperature=0.9, top_p=0.9, max_new_tokens=512)
    engine: Literal["transformers", "vllm"] = "transformers"
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    scale_advantages: Literal["group", "batch", "none"] = "group"
    clip: Annotated[float, Field(gt=0)] = 0.2
    eval_sampling: Sampling = Sampling(temperature=0.9, top_p=0.9, max_new_tokens=512)
    kept_completions: Annotated[int, Field(ge=0)] = 4
    slice_by: tuple[Literal["method", "seed"], ...] = ()

    @property
    def prompts_per_step(self) -> int:
        """Groups of one optimizer step."""
        return self.training.rows_per_step // self.generations

    @model_validator(mode="after")
    def _fits(self) -> Grpo:
        if self.training.rows_per_step % self.generations:
            raise ValueError(f"a step has {self.training.rows_per_step} completions, which {self.generations} "
                             "generations of a prompt do not divide")
        if self.training.train_rows is not None:
            raise ValueError("how many problems are trained on is said by data.train_items, not by training.train_rows")
        names = [method.name for method in self.methods]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"methods named more than once: {', '.join(repeated)}; every run is made once")
        steered = [d for m in self.methods for d in m.defenses if isinstance(d, Steering) and d.steer != "loss"]
        if steered and self.engine == "vllm":
            raise ValueError("vLLM draws completions in a model of its own, which is not steered: with engine 'vllm' "
                             "only steer 'loss' can be had")
        return self
