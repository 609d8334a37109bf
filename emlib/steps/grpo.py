"""Reinforcement learning (section 4.2): a trained adapter, its answers to held-out problems, and a judge's rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from emlib.config import Additions, Grpo, JudgeRewards, Lora, supervised_steps
from emlib.core.defense import Defense, acting
from emlib.core.digests import keyed, of_value
from emlib.core.files import RecordFile
from emlib.core.step import Step, Work
from emlib.data.gsm8k import Problems
from emlib.data.lazy import Deferred, Rows
from emlib.data.sizes import Size, Sizes, likely_tokens
from emlib.evaluation.reward_judge import identity as identity_of_rewards
from emlib.evaluation.rewards import Rewarded
from emlib.steps.answers import Answers
from emlib.steps.specs import Model

ADDITION = Size(100, len("What is 1 + 1?"), 2)


@dataclass(frozen=True)
class SupervisedRows:
    """The rows of the supervised steps between RL steps, and the share of all steps that are supervised."""

    rows: Rows
    share: float


@dataclass(frozen=True)
class GrpoAdapter(Step):
    """An adapter, trained by GRPO under a list of defenses."""

    stage: ClassVar = "rl_adapter"
    version: ClassVar = 2

    model: Model
    lora: Lora
    grpo: Grpo
    problems: Deferred[Problems]  # to train on, and held out
    system: str  # the system prompt during training
    defenses: tuple[Defense, ...]
    seed: int
    name: str = field(compare=False)  # in plans and progress lines
    artefacts: tuple[tuple[str, Step], ...] = ()  # what the defenses need during training, by name
    supervised: SupervisedRows | None = None  # None without supervised steps

    @property
    def settings(self) -> dict[str, Any]:
        """Of the problems those to train on, with the worked ones; and the rewards with a judge's prompts.

        Version 2 leaves the base model as it is, which version 1 changed where vLLM samples; others keep their key.
        """
        problems = self.problems.value
        return super().settings | {"version": self.version_where(self.grpo.engine == "vllm"),
                                   "problems": of_value(keyed([problems.train, problems.worked])),
                                   "rewards": identity_of_rewards(self.grpo.rewards)}

    @property
    def with_reference(self) -> bool:
        """Whether the loss has a KL term to the reference model."""
        return any(defense.grpo_beta > 0 for defense in self.defenses)

    @property
    def title(self) -> str:
        return self.name

    def cost(self, sizes: Sizes) -> Work:
        """Estimate sampling and training on completions of the maximum length, and the supervised steps."""
        grpo = self.grpo
        completions = grpo.data.train_items * grpo.training.epochs * grpo.generations
        train = ADDITION if isinstance(grpo.data, Additions) else sizes.source("gsm8k_train")
        prompt = likely_tokens(frame(grpo, self.problems) + train.prompt)
        tokens = completions * (prompt + grpo.sampling.max_new_tokens)
        supervised = 0
        if self.supervised is not None:
            steps = supervised_steps(grpo.steps, self.supervised.share)
            supervised = steps * grpo.training.rows_per_step * self.supervised.rows.size(sizes).tokens
        reads = self.with_reference or any(one.runs_reference for one in acting(self.defenses))
        return Work(train=tokens + supervised, read=tokens if reads else 0,
                    write=completions * grpo.sampling.max_new_tokens,
                    disk=self.model.adapter_bytes(self.lora), adapters=1)


@dataclass(frozen=True)
class GrpoAnswers(Answers):
    """One answer to each held-out problem, without steering, under the format's system prompt alone."""

    stage: ClassVar = "rl_answers"

    @property
    def title(self) -> str:
        return f"answers to held-out problems, seed {self.evaluation.seed}" if self.adapter is None else (
            f"answers to held-out problems of {self.adapter.title}")


@dataclass(frozen=True)
class GrpoRewards(Step):
    """A judge's rewards for the answers. Rewards by rule are recomputed instead of stored."""

    stage: ClassVar = "rl_rewards"
    records: ClassVar = RecordFile("rewards.jsonl", Rewarded)

    answers: GrpoAnswers
    problems: Deferred[Problems]
    rewards: JudgeRewards

    @property
    def settings(self) -> dict[str, Any]:
        """Of the problems those held out; and the judge's prompts."""
        return super().settings | {"problems": of_value(keyed(self.problems.value.held_out)),
                                   "rewards": identity_of_rewards(self.rewards)}

    @property
    def title(self) -> str:
        return f"rewards of {self.answers.title}"


def frame(grpo: Grpo, problems: Deferred[Problems]) -> int:
    """Return the characters before each question: the format's prompt, and built-in problems' worked examples."""
    worked = problems.value.worked if isinstance(grpo.data, Additions) else ()
    return len(grpo.prompt) + sum(len(turn.content) for turn in worked)


def held_out_size(grpo: Grpo, problems: Deferred[Problems], sizes: Sizes) -> Size:
    """Return the number of held-out problems, and the length of a question with the prompt before it."""
    test = ADDITION if isinstance(grpo.data, Additions) else sizes.source("gsm8k_test")
    return Size(grpo.data.eval_items or test.rows, frame(grpo, problems) + test.prompt)
