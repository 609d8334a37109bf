"""A model's answers, and judges' verdicts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from emlib.config import LlmJudge, NoJudge, OpenAIJudge, Thresholds
from emlib.core.digests import of_value
from emlib.core.files import RecordFile
from emlib.core.records import Answer, MetricScore, Verdict, as_judged, with_clusters
from emlib.core.seeds import some_of
from emlib.core.step import Step, Work
from emlib.data.lazy import Deferred
from emlib.data.sizes import Sizes
from emlib.judging.rubrics import OURS
from emlib.steps.specs import AdapterStep, Assessment, EvaluationSpec

Item = TypeVar("Item")


@dataclass(frozen=True)
class Answers(AdapterStep):
    """The sampled answers of the model under an adapter, or of the untrained model."""

    stage: ClassVar = "answers"
    records: ClassVar = RecordFile("answers.jsonl", Answer)

    evaluation: EvaluationSpec
    backend: str  # that the profile states for sampling

    @property
    def title(self) -> str:
        model = f"the untrained model, seed {self.evaluation.seed}" if self.adapter is None else self.adapter.title
        return f"{self.evaluation.questions.name} answers of {model}"

    def cost(self, sizes: Sizes) -> Work:
        return self.evaluation.sampled(sizes)


@dataclass(frozen=True)
class Verdicts(Step):
    """A judge's verdicts on answers. The thresholds that label them are no part of the key."""

    stage: ClassVar = "verdicts"
    records: ClassVar = RecordFile("verdicts.jsonl", Verdict)

    answers: Answers
    assessment: Assessment
    thresholds: Thresholds = field(default_factory=Thresholds, compare=False, kw_only=True)

    def completed(self, records: list[Any]) -> list[Any]:
        bounds = (self.thresholds.alignment, self.thresholds.coherence)
        return as_judged(records, self.answers.evaluation.questions.all, bounds=bounds,
                         coherence_judged=self.assessment.judge.judges_coherence)

    @property
    def settings(self) -> dict[str, Any]:
        """The answers, and of the rubrics only those of their questions."""
        return {"version": self.version, "answers": self.answers.key,
                "assessment": self.assessment.of(self.answers.evaluation.questions)}

    @property
    def title(self) -> str:
        return f"verdicts on {self.answers.title}"

    def cost(self, sizes: Sizes) -> Work:
        return self.assessment.cost(self.answers.evaluation, sizes)


@dataclass(frozen=True)
class MetricScores(Step):
    """A judge's scores of answers on one metric of their question set. What counts is no part of the key."""

    version: ClassVar = 2  # all of a label is read, and not its first token alone
    stage: ClassVar = "metrics"
    records: ClassVar = RecordFile("metrics.jsonl", MetricScore)

    answers: Answers
    judge: LlmJudge | NoJudge
    metric: str
    prompts: Deferred[Mapping[str, str]]  # the judge prompt of each question, by its id
    has_labels: bool = False  # whether the judge is to reply with a label, and not with a number

    def completed(self, records: list[Any]) -> list[Any]:
        return with_clusters(records, self.answers.evaluation.questions.all)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the prompts only those of the questions."""
        prompts = [self.prompts.value[question.id] for question in self.answers.evaluation.questions.all]
        return super().settings | {"prompts": of_value(prompts)}

    @property
    def title(self) -> str:
        return f"metric {self.metric} of {self.answers.title}"

    def cost(self, sizes: Sizes) -> Work:
        """Estimate the work of scoring the answers, with a judge prompt as long as ours. A label is requested once."""
        judge = self.judge
        if self.has_labels and isinstance(judge, OpenAIJudge) and (judge.samples or judge.requests_a_score > 1):
            judge = judge.model_copy(update={"samples": 1})
        return self.answers.evaluation.judged(judge, len(OURS.alignment), sizes, scores=1)


@dataclass(frozen=True)
class SecondVerdicts(Verdicts):
    """A second judge's verdicts on `count` of the answers, chosen by a fixed seed, or on all (None)."""

    stage: ClassVar = "second_verdicts"

    count: int | None

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"count": self.count}

    def chosen(self, of: Sequence[Item]) -> list[Item]:
        """Return the items of those answers that the second judge reads. `of` has one item for each answer."""
        return some_of(of, self.count, "second judge")

    def cost(self, sizes: Sizes) -> Work:
        """Return no work: plans do not include the second judge, and say so."""
        return Work()
