"""What steps share: the model, its training and its evaluation, and two bases of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from emlib.config import JudgeSpec, Lora, ModelSpec, Sampling, Training, Trait
from emlib.config.shapes import Shape, shape
from emlib.core.defense import Defense
from emlib.core.digests import Keyed
from emlib.core.step import JudgeWork, Step, Work
from emlib.data.lazy import Deferred, Questions, Rows
from emlib.data.sizes import CHARACTERS_A_TOKEN, Size, Sizes, likely_tokens
from emlib.judging.judges import reads
from emlib.judging.rubrics import METRICS, Rubrics, trait_rubrics

VERDICT_BYTES = 700  # about, including its two scores in the cache


@dataclass(frozen=True)
class Model(Keyed):
    """The chat model of a study, untrained."""

    spec: ModelSpec

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The part of it that enters a key."""
        return self.spec.identity

    @cached_property
    def shape(self) -> Shape | None:
        """Its parameters, layers and widths; None where they are not known."""
        return shape(self.spec)

    def adapter_bytes(self, lora: Lora) -> int:
        """Estimate the bytes of a saved adapter; 0 where the model's size is not known."""
        return 0 if self.shape is None else self.shape.adapter_bytes(lora)


@dataclass(frozen=True)
class TrainingSpec:
    """What an adapter is trained on, and how. The model and the LoRA configuration are the profile's.

    What is kept and what a monitor reads on the way changes no adapter.
    """

    dataset: str = field(compare=False)  # of `rows`; interleaving uses no scorer that was trained on it
    rows: Rows  # after the defenses changed them, without the rows interleaved from a pool
    defenses: tuple[Defense, ...]
    training: Training
    seed: int  # of the adapter and of the order of the rows
    plain_rows: Rows | None = field(default=None, compare=False, repr=False)  # before the defenses changed them
    keep: tuple[float, ...] = field(default=(), compare=False)  # shares of the steps after which it is kept as well
    held_out: Rows | None = field(default=None, compare=False, repr=False)  # which nothing is trained on
    monitor: Any = field(default=None, compare=False, repr=False)  # an `emlib.steps.monitor.Monitored`, or None
    steps: int | None = None  # of the optimizer; None: those of the epochs

    @property
    def plain(self) -> TrainingSpec:
        """The same training without defenses."""
        return replace(self, rows=self.plain_rows or self.rows, defenses=(), plain_rows=None)


@dataclass(frozen=True)
class EvaluationSpec:
    """The questions, the number of samples for each, and how answers are sampled."""

    questions: Questions
    samples: int
    sampling: Sampling
    seed: int

    def sampled(self, sizes: Sizes) -> Work:
        """Estimate the work of sampling all answers, each at the maximum length."""
        asked = self.questions.size(sizes)
        answers = asked.rows * self.samples
        return Work(read=asked.rows * likely_tokens(asked.prompt), write=answers * self.sampling.max_new_tokens, sets=1,
                    disk=int(answers * self.sampling.max_new_tokens * CHARACTERS_A_TOKEN))

    def judged(self, judge: JudgeSpec, rubric: float, sizes: Sizes, *, scores: int = len(METRICS),
               is_main: bool = False) -> Work:
        """Estimate the work of requesting so many scores of each answer, with `rubric` characters of prompt around it.

        That of the profile's judge on whole verdicts (`is_main`) is counted apart.
        """
        if judge.kind == "none":
            return Work()
        asked, length = self.questions.size(sizes), self.sampling.max_new_tokens * CHARACTERS_A_TOKEN
        answers = asked.rows * self.samples
        requests, disk = scores * answers, scores * answers * VERDICT_BYTES // len(METRICS)
        read = requests * likely_tokens(rubric + asked.prompt + length) if reads(judge) else 0
        return (Work(verdicts=answers, judged=read, disk=disk) if is_main
                else Work(disk=disk, others=(JudgeWork(judge, requests, read),)))


@dataclass(frozen=True)
class Assessment(Keyed):
    """A judge and the rubrics or markers that it judges by."""

    judge: JudgeSpec
    trait: Deferred[Trait]  # whose markers the lexicon judge counts
    rubrics: Deferred[Rubrics]  # that a language model is given as judge
    characters: Callable[[Sizes], float] = field(compare=False, repr=False)  # of a prompt without question and answer
    # Whether the judge is the profile's, whose work plans count separately.
    is_main: bool = field(default=True, compare=False)

    @property
    def identity(self) -> dict[str, Any]:
        """What determines verdicts by the trait's rubric or markers, whatever is asked."""
        return self._with(asdict(trait_rubrics(self.trait.value).others) if reads(self.judge) else None)

    def of(self, questions: Questions) -> dict[str, Any]:
        """Return what determines verdicts on answers to these questions, by the rubrics or the trait's markers."""
        return self._with(self.rubrics.value.key(questions.all) if reads(self.judge) else None)

    def _with(self, rubrics: Any) -> dict[str, Any]:
        """Return the judge with the rubrics that it reads, or the markers that it counts."""
        markers = list(self.trait.value.markers) if self.judge.kind == "lexicon" else None
        return {"judge": self.judge.identity, "rubrics": rubrics, "markers": markers}

    def cost(self, evaluation: EvaluationSpec, sizes: Sizes) -> Work:
        return evaluation.judged(self.judge, self.characters(sizes), sizes, is_main=self.is_main)


def first(size: Size, rows: int | None) -> Size:
    """Return the size of the first `rows` rows, or of all (None)."""
    return replace(size, rows=min(size.rows, rows or size.rows))


@dataclass(frozen=True)
class AdapterStep(Step):
    """The base of steps that run the model under an adapter, or the untrained model where `adapter` is None."""

    model: Model
    adapter: Step | None
