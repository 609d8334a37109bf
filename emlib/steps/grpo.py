"""Reinforcement learning (section 4.2): a trained adapter, its answers to held-out problems, and a judge's rewards."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from emlib.config import Additions, Grpo, JudgeRewards, Lora, supervised_steps
from emlib.core.defense import Defense
from emlib.core.digests import of_value
from emlib.core.step import Step
from emlib.core.work import Work
from emlib.data.gsm8k import Problem, Problems
from emlib.data.lazy import Deferred, Rows
from emlib.data.sizes import Size, Sizes, likely_tokens
from emlib.evaluation.reward_judge import identity as identity_of_rewards
from emlib.steps.answers import Answers
from emlib.steps.specs import Model

ADDITION = Size(100, len("What is 1 + 1?"), 2)
# What of the section determines no adapter.
LATER = {"data", "methods", "seeds", "prompt", "rewards", "eval_sampling", "kept_completions", "slice_by"}


@dataclass(frozen=True)
class SupervisedRows:
    """The rows of supervised steps between RL steps, and the share of all steps that these are."""

    rows: Rows
    share: float


@dataclass(frozen=True)
class GrpoAdapter(Step):
    """An adapter, trained by GRPO under a list of defenses.

    Attributes:
        grpo: the section of the profile.
        problems: what is trained on and what is held out.
        system: the system prompt of its training.
        artefacts: what the defenses need while it is trained, by name.
        supervised: the rows of its supervised steps.
        name: what people call it.
    """

    stage: ClassVar = "rl_adapter"

    model: Model
    lora: Lora
    grpo: Grpo
    problems: Deferred[Problems]
    system: str
    defenses: tuple[Defense, ...]
    seed: int
    name: str = field(compare=False)
    artefacts: tuple[tuple[str, Step], ...] = ()
    supervised: SupervisedRows | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The problems, the recipe, the defenses and what these are made from."""
        worked = self.problems.value.worked
        section = self.grpo.model_dump(mode="json", exclude=LATER)
        return {
            "model": self.model.identity, "lora": self.lora.model_dump(mode="json"),
            "grpo": section | {"rewards": identity_of_rewards(self.grpo.rewards)},
            "problems": digest_of_problems(self.problems.value.train), "system": self.system,
            "defenses": [defense.identity for defense in self.defenses],
            "supervised": None if self.supervised is None else self.supervised.rows.digest, "seed": self.seed,
            "vector": None, **{name: step.key for name, step in self.artefacts},
            **({"worked": [turn.to_dict() for turn in worked]} if worked else {})}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """What the defenses need."""
        return tuple(step for _, step in self.artefacts)

    @property
    def title(self) -> str:
        """As people call it."""
        return self.name

    def cost(self, sizes: Sizes) -> Work:
        """Completions at their full length are sampled and trained on; supervised steps come on top."""
        grpo = self.grpo
        drawn = grpo.data.train_items * grpo.training.epochs * grpo.generations
        learnt = drawn * (likely_tokens(self._prompt() + _train_size(grpo, sizes).prompt)
                          + grpo.sampling.max_new_tokens)
        rows = 0
        if self.supervised is not None:
            steps = supervised_steps(drawn // grpo.training.rows_per_step, self.supervised.share)
            rows = steps * grpo.training.rows_per_step * self.supervised.rows.size(sizes).tokens
        disk = 0 if self.model.shape is None else self.model.shape.adapter_bytes(self.lora)
        return Work(train=learnt + rows, read=learnt if self._compared() else 0,
                    write=drawn * grpo.sampling.max_new_tokens, disk=disk, adapters=1)

    def _prompt(self) -> int:
        return frame(self.grpo, self.problems)

    def _compared(self) -> bool:
        """Whether the reference model goes over the completions as well."""
        return any(defense.grpo_beta > 0 for defense in self.defenses)


@dataclass(frozen=True)
class GrpoAnswers(Answers):
    """One answer to each held-out problem, never steered, with the format's prompt alone."""

    stage: ClassVar = "rl_answers"

    @property
    def settings(self) -> dict[str, Any]:
        """As of other answers; there is one sample of each."""
        return {name: value for name, value in super().settings.items() if name != "samples"}

    @property
    def title(self) -> str:
        """As people call it."""
        return f"answers to held-out problems, seed {self.evaluation.seed}" if self.adapter is None else (
            f"answers to held-out problems of {self.adapter.title}")


@dataclass(frozen=True)
class GrpoRewards(Step):
    """What a judge gives for the answers. What rules give is not kept."""

    stage: ClassVar = "rl_rewards"

    answers: GrpoAnswers
    problems: Deferred[Problems]
    rewards: JudgeRewards

    @property
    def settings(self) -> dict[str, Any]:
        """The answers, the right ones, and the judge."""
        return {"answers": self.answers.key, "problems": digest_of_problems(self.problems.value.held_out),
                "rewards": identity_of_rewards(self.rewards)}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The answers."""
        return (self.answers,)

    @property
    def title(self) -> str:
        """As people call it."""
        return f"rewards of {self.answers.title}"


def digest_of_problems(problems: tuple[Problem, ...]) -> str:
    """What of problems determines a training or a reward."""
    return of_value([asdict(problem) for problem in problems])


def frame(grpo: Grpo, problems: Deferred[Problems]) -> int:
    """Characters before each question: the prompt of the format, and worked problems where these are made here."""
    worked = problems.value.worked if isinstance(grpo.data, Additions) else ()
    return len(grpo.prompt) + sum(len(turn.content) for turn in worked)


def held_out_size(grpo: Grpo, problems: Deferred[Problems], sizes: Sizes) -> Size:
    """How many problems are held out, and how long a question is with what stands before it."""
    test = ADDITION if isinstance(grpo.data, Additions) else sizes.source("gsm8k_test")
    return Size(grpo.data.eval_items or test.rows, frame(grpo, problems) + test.prompt)


def _train_size(grpo: Grpo, sizes: Sizes) -> Size:
    return ADDITION if isinstance(grpo.data, Additions) else sizes.source("gsm8k_train")
