"""Persona vectors of a trait (section 3.1), and the untrained model's answers when it is steered with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

from emlib.config import Extraction, Sampling
from emlib.core.files import RecordFile
from emlib.core.records import Answer, Verdict
from emlib.core.step import Step, Work
from emlib.data.lazy import Questions
from emlib.data.sizes import Sizes, likely_tokens
from emlib.steps.specs import Assessment, EvaluationSpec, Model


@dataclass(frozen=True)
class PersonaVectors(Step):
    """The trait's persona vectors at every layer of the model."""

    stage: ClassVar = "vector"
    version: ClassVar = 2

    model: Model
    assessment: Assessment
    backend: str  # that the profile states for sampling
    extraction: Extraction
    # Of one side (positive or negative), each under every system prompt of that side: those of the trait.
    questions: Questions = field(compare=False)
    stated: int | None = field(default=None, compare=False)  # the number of these; None where a source has them

    @property
    def settings(self) -> dict[str, Any]:
        """Also what the trait asks, which `questions` stands for in plans.

        Version 2 leaves an empty think block out of means; models whose template writes none keep their key, and that
        of everything that is made from their vectors.
        """
        asked = {"system_prompts", "questions"}
        return super().settings | {"version": self.version_where(self.model.spec.may_think),
                                   "asked": self.assessment.trait.value.model_dump(mode="json", include=asked)}

    def check(self, facts: Mapping[str, Any]) -> None:
        """Refuse vectors of too few pairs for this profile: another one, with a lower `min_pairs`, left them."""
        self.extraction.refuse_few(facts["kept"], facts["asked"])

    def refuse_few_asked(self) -> None:
        """Refuse a trait whose file has too few questions for this profile, before anything is sampled."""
        if self.stated is not None:
            self.extraction.refuse_few_asked(self.stated, self.assessment.trait.name)

    @property
    def title(self) -> str:
        """The kind of artefact, of which a study has one for each trait."""
        return f"persona vectors{self.questions.name.removeprefix('extraction')}"

    def cost(self, sizes: Sizes) -> Work:
        config = self.extraction
        side = EvaluationSpec(self.questions, config.samples, config.sampling, config.seed)
        asked = self.questions.size(sizes)
        answers = side.sampled(sizes) + self.assessment.cost(side, sizes)
        length = config.sampling.max_new_tokens + likely_tokens(asked.prompt)
        passes = Work(read=2 * asked.rows * config.samples * length)
        return replace(answers + answers + passes, sets=0)


@dataclass(frozen=True)
class SteeredAnswers(Step):
    """The untrained model's answers with `strength` times the persona vector added to `layer`, and the verdicts."""

    stage: ClassVar = "steered"
    records: ClassVar = RecordFile("answers.jsonl", Answer)
    verdicts: ClassVar = RecordFile("verdicts.jsonl", Verdict)

    model: Model
    vectors: PersonaVectors | None  # None at strength 0, where all layers give the same answers
    layer: int | None  # likewise
    strength: float
    questions: Questions
    sampling: Sampling
    assessment: Assessment

    @property
    def title(self) -> str:
        """The same for all layers and strengths, so that a plan adds them up."""
        return "answers under the persona vectors (notebook 03)"

    @cached_property
    def evaluation(self) -> EvaluationSpec:
        """One sample for each question."""
        return EvaluationSpec(self.questions, 1, self.sampling, 0)

    def cost(self, sizes: Sizes) -> Work:
        return replace(self.evaluation.sampled(sizes) + self.assessment.cost(self.evaluation, sizes), sets=0)
