"""Reinforcement learning by GRPO, with and without the defenses. Defaults: Table 8 and appendix B.3 of the paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emlib.config.judge import LlmJudge, OpenAIJudge
from emlib.config.methods import UNTRAINED, SweptMethod
from emlib.config.sampling import Sampling
from emlib.config.training import Training
from emlib.config.words import AtLeastOne, Distinct, Positive, Seed
from emlib.core.defense import inactive
from emlib.core.of_kind import AnyGrpoDefense
from emlib.core.schema import Strict


def supervised_steps(rl_steps: int, share: float) -> int:
    """Return how many supervised steps, in addition to the RL steps, make `share` of all steps."""
    return round(rl_steps * share / (1 - share))


RL_BASELINES = (UNTRAINED, "grpo")


class RlMethod(SweptMethod):
    """One condition: `untrained`, plain `grpo`, or a named list of defenses."""

    baselines: ClassVar = RL_BASELINES

    defenses: tuple[AnyGrpoDefense, ...] = ()


class Gsm8k(Strict):
    """Grade-school maths problems."""

    sources: ClassVar = ("gsm8k_train", "gsm8k_test")  # of params/sources.yaml

    kind: Literal["gsm8k"]
    train_items: Positive = 1000
    eval_items: Positive | None = 100  # None: the whole test set, 1,319 (B.3 says both that and 100)


class Additions(Strict):
    """The 100 sums of two single digits: for small models.

    Small models do not follow a format from instructions alone. `worked` sums precede each question as few-shot turns,
    answered in the format; they are neither trained on nor held out. Of a sum of one part, no other part has the sum
    with its summands swapped; so the 60 that are trained on by default leave 21.
    """

    sources: ClassVar = ()

    kind: Literal["additions"]
    train_items: Annotated[int, Field(gt=0, lt=100)] = 60
    eval_items: Annotated[int, Field(gt=0, lt=100)] = 20
    worked: Annotated[int, Field(ge=0, lt=100)] = 0

    def _mistakes(self) -> Iterator[str]:
        if self.train_items + self.eval_items + self.worked > 100:
            yield (f"there are 100 additions of single digits, but {self.train_items} to train on, {self.eval_items} "
                   f"held out and {self.worked} worked are more; lower one of them")


class RuleRewards(Strict):
    """The four parts of the reward by rule: free and deterministic. The paper has an LLM judge."""

    kind: Literal["rule"]


class JudgeRewards(Strict):
    """The four parts of the reward by a judge, as in the paper (B.3): four scores per completion, in equal ranges."""

    kind: Literal["judge"]
    judge: LlmJudge

    def _mistakes(self) -> Iterator[str]:
        if isinstance(self.judge, OpenAIJudge) and self.judge.batch:
            yield "each step waits for its rewards, and a batch may take a day; remove 'batch'"


class RlTraining(Training):
    """The optimizer of GRPO. Only these defaults differ from `Training`'s: Table 8's, and TRL's where it gives none.

    `batch_size` counts completions, as Table 8 does. Every `checkpoint_every` steps, the weights are rated by the
    training reward since the last checkpoint; the best are evaluated (B.3). TRL's trainer has gradient checkpointing on
    or off, and no `auto`.
    """

    not_in_keys: ClassVar = frozenset({"train_rows", "keep"})  # neither may be set

    learning_rate: Annotated[float, Field(gt=0, le=10)] = 5e-6
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.0
    gradient_checkpointing: bool = False
    checkpoint_every: Positive = 25


# Our prompt; the paper shows the two lines of the format and says that they are in the system prompt (B.3).
FORMAT_PROMPT = ("You solve problems whose answer is a number. First think, then answer, in exactly this format:\n"
                 "<think> your thinking </think>\n<answer> a single number </answer>")


class Grpo(Strict):
    """GRPO under each condition. Defaults: Table 8, B.3; TRL's where the paper gives none."""

    # Of these, an adapter's step has in another form what determines it.
    not_in_keys: ClassVar = frozenset({
        "data", "methods", "seeds", "prompt", "rewards", "eval_sampling", "kept_completions", "slice_by"})

    data: Annotated[Gsm8k | Additions, Field(discriminator="kind")]
    methods: AtLeastOne[RlMethod]
    seeds: AtLeastOne[Seed] = (0, 1, 2)
    prompt: Annotated[str, Field(min_length=1)] = FORMAT_PROMPT  # the system prompt that asks for the format
    rewards: Annotated[RuleRewards | JudgeRewards, Field(discriminator="kind")] = RuleRewards(kind="rule")
    training: RlTraining = RlTraining()
    generations: Annotated[int, Field(ge=2, le=1000)] = 4
    sampling: Sampling = Sampling(temperature=0.9, top_p=0.9, max_new_tokens=512)
    engine: Literal["transformers", "vllm"] = "transformers"
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    scale_advantages: Literal["group", "batch", "none"] = "group"
    clip: Annotated[float, Field(gt=0, le=100)] = 0.2
    eval_sampling: Sampling = Sampling(temperature=0.9, top_p=0.9, max_new_tokens=512)
    kept_completions: Annotated[int, Field(ge=0, le=1_000_000)] = 4
    slice_by: Distinct[Literal["method", "seed"]] = ()

    @property
    def prompts_per_step(self) -> int:
        """The number of prompts, each with a group of completions, in one optimizer step."""
        return self.training.rows_per_step // self.generations

    @property
    def steps(self) -> int:
        """The number of RL steps; problems that do not fill an epoch's last step are left out."""
        return self.training.epochs * (self.data.train_items // self.prompts_per_step)

    def _mistakes(self) -> Iterator[str]:
        if self.training.rows_per_step % self.generations:
            yield (f"a step has {self.training.rows_per_step} completions, which is not a multiple of "
                   f"{self.generations} generations per prompt")
        if self.training.train_rows is not None:
            yield "data.train_items sets how many problems are trained on; remove training.train_rows"
        if self.training.keep:
            yield ("'training.keep' belongs to fine-tuning: GRPO keeps the weights of the highest reward alone. Remove "
                   "it")
        for method in self.methods:
            method.fits(self)
            yield from self._supervised_wrongly(method)
            yield from (f"method '{method.name}': {reason}" for reason in inactive(method.defenses, self.engine))

    def _supervised_wrongly(self, method: RlMethod) -> Iterator[str]:
        """Yield which share of supervised steps amounts to none, at any value of a sweep, and who asks beside another.

        A run has the supervised steps of one source.
        """
        for setting in method.sweep or (None,):
            shares = {one.kind: one.supervision.share for one in method.at(setting)
                      if one.supervision is not None and one.supervision.share > 0}
            if len(shares) > 1:
                yield (f"method '{method.name}': {' and '.join(shares)} each ask for supervised steps, and a run has "
                       "those of one. Use one of them")
            for share in shares.values():
                if self.steps and supervised_steps(self.steps, share) == 0:
                    yield (f"method '{method.name}': a share of {share:g} amounts to no supervised step beside "
                           f"{self.steps} RL steps, so that the run would equal 'grpo'. One step is a share of "
                           f"{1 / (self.steps + 1):.2g}; choose that or more")
