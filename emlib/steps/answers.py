"""What a model answers, and what judges say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from emlib.config import Backend
from emlib.core.seeds import some_of
from emlib.core.step import Step
from emlib.core.work import Work
from emlib.data.sizes import Sizes
from emlib.steps.specs import Assessment, EvaluationSpec, Model

Item = TypeVar("Item")


@dataclass(frozen=True)
class Answers(Step):
    """The answers of the model under an adapter, or of the untrained model where there is none."""

    stage: ClassVar = "answers"

    model: Model
    adapter: Step | None
    evaluation: EvaluationSpec
    backend: Backend

    @property
    def settings(self) -> dict[str, Any]:
        """Who answers what, how often, and how answers are sampled."""
        return {
            "model": self.model.identity, "adapter": None if self.adapter is None else self.adapter.key,
            "questions": self.evaluation.questions.digest, "samples": self.evaluation.samples,
            "sampling": self.evaluation.sampling.model_dump(mode="json"), "seed": self.evaluation.seed,
            **self.backend.key("generation")}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The adapter."""
        return () if self.adapter is None else (self.adapter,)

    @property
    def title(self) -> str:
        """As people call it."""
        who = f"the untrained model, seed {self.evaluation.seed}" if self.adapter is None else self.adapter.title
        return f"{self.evaluation.questions.name} answers of {who}"

    def cost(self, sizes: Sizes) -> Work:
        """Sampling them."""
        return self.evaluation.sampled(sizes)


@dataclass(frozen=True)
class Verdicts(Step):
    """What the judge says of answers."""

    stage: ClassVar = "verdicts"

    answers: Answers
    assessment: Assessment

    @property
    def settings(self) -> dict[str, Any]:
        """The answers, the judge and what it goes by."""
        return {"answers": self.answers.key, "judge": self.assessment.identity,
                **self.assessment.criteria(self.answers.evaluation.questions)}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The answers."""
        return (self.answers,)

    @property
    def title(self) -> str:
        """As people call it."""
        return f"verdicts on {self.answers.title}"

    def cost(self, sizes: Sizes) -> Work:
        """Judging them."""
        return self.assessment.cost(self.answers.evaluation, sizes)


@dataclass(frozen=True)
class SecondVerdicts(Verdicts):
    """What a second judge says of `count` of the answers, chosen by a fixed seed; None for all."""

    stage: ClassVar = "second_verdicts"

    count: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """As those of the first judge, and how many."""
        [by] = self.assessment.criteria(self.answers.evaluation.questions).values()
        return {"answers": self.answers.key, "judge": self.assessment.identity, "rubrics": by, "count": self.count}

    def chosen(self, of: Sequence[Item]) -> list[Item]:
        """Of all answers, or of what belongs to each, those that the second judge is given."""
        return some_of(of, self.count, "second judge")

    def cost(self, sizes: Sizes) -> Work:
        """Plans leave the second judge out, and say so."""
        return Work()
