"""What steps are made of: the model, what it is trained on, what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from emlib.config import JudgeSpec, ModelSpec, Sampling, Training, Trait
from emlib.core.defense import Defense
from emlib.core.work import Work
from emlib.data.lazy import Deferred, Questions, Rows
from emlib.data.sizes import CHARACTERS_A_TOKEN, Size, Sizes, likely_tokens
from emlib.judging.judges import identity as identity_of_judge
from emlib.judging.judges import reads
from emlib.judging.rubrics import METRICS, Rubrics
from emlib.models.identity import identity
from emlib.models.shape import Shape, shape

VERDICT_BYTES = 700  # with its two scores in the cache, about


@dataclass(frozen=True)
class Model:
    """The chat model of a study, untrained."""

    spec: ModelSpec

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What stands for its weights in keys."""
        return identity(self.spec)

    @cached_property
    def shape(self) -> Shape | None:
        """How large it is; None where nobody knows."""
        return shape(self.spec)


@dataclass(frozen=True)
class TrainingSpec:
    """What an adapter is trained on, and how; the model and the shape of the adapter are the profile's.

    `dataset` names what `rows` are of: interleaving takes no scorer that has seen it. `rows` are as the defenses leave
    them, without those of a pool.
    """

    dataset: str
    rows: Rows
    defenses: tuple[Defense, ...]
    training: Training
    seed: int


@dataclass(frozen=True)
class EvaluationSpec:
    """What a model is asked, how often, and how its answers are sampled."""

    questions: Questions
    samples: int
    sampling: Sampling
    seed: int

    def sampled(self, sizes: Sizes) -> Work:
        """What answering takes, each answer at its full length."""
        asked = self.questions.size(sizes)
        answers = asked.rows * self.samples
        return Work(read=asked.rows * likely_tokens(asked.prompt), write=answers * self.sampling.max_new_tokens, sets=1,
                    disk=int(answers * self.sampling.max_new_tokens * CHARACTERS_A_TOKEN))

    def judged(self, judge: JudgeSpec, rubric: float, sizes: Sizes) -> Work:
        """What judging all answers takes; `rubric` is how many characters a judge prompt has around them."""
        if judge.kind == "none":
            return Work()
        asked = self.questions.size(sizes)
        answers, length = asked.rows * self.samples, self.sampling.max_new_tokens * CHARACTERS_A_TOKEN
        prompt = likely_tokens(rubric + asked.prompt + length) if reads(judge) else 0
        return Work(verdicts=answers, judged=len(METRICS) * answers * prompt, disk=answers * VERDICT_BYTES)


@dataclass(frozen=True)
class Assessment:
    """Who judges answers, and by what.

    Attributes:
        judge: the judge.
        trait: the trait, whose markers the lexicon judge counts.
        rubrics: what a judge reads that is a language model.
        characters: how many characters of a judge prompt stand around question and answer, in the mean.
    """

    judge: JudgeSpec
    trait: Deferred[Trait]
    rubrics: Deferred[Rubrics]
    characters: Callable[[Sizes], float] = field(compare=False, repr=False)

    @property
    def reads(self) -> bool:
        """Whether the judge is a language model."""
        return reads(self.judge)

    @property
    def identity(self) -> dict[str, Any]:
        """What stands for the judge in keys."""
        return identity_of_judge(self.judge)

    def criteria(self, questions: Questions) -> dict[str, Any]:
        """What else determines the verdicts on answers to these questions."""
        if reads(self.judge):
            return {"rubrics": self.rubrics.value.key(questions.all)}
        return {"trait": self.trait.value.model_dump(mode="json")}

    def cost(self, evaluation: EvaluationSpec, sizes: Sizes) -> Work:
        """What judging all answers takes."""
        return evaluation.judged(self.judge, self.characters(sizes), sizes)


def first(size: Size, rows: int | None) -> Size:
    """The size of the first `rows` rows; None for all."""
    return replace(size, rows=min(size.rows, rows or size.rows))
