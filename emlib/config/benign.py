"""The benign tasks of section 5.2, which measure whether a defense impairs benign fine-tuning."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from emlib.config.methods import BASELINES, UNTRAINED, Method
from emlib.config.sampling import Sampling
from emlib.config.training import Training
from emlib.config.words import AtLeastOne, Positive, Seed, Share, SmallCount, no_repeats
from emlib.core.names import Name
from emlib.core.schema import Strict

Tier = Annotated[int, Field(ge=0, le=3)]


def _one_sided(methods: tuple[Method, ...]) -> tuple[Method, ...]:
    """Return the methods; raise ValueError if one needs aligned or misaligned rows."""
    wrong = [method.name for method in methods if method.name in BASELINES and method.name != UNTRAINED]
    if wrong:
        raise ValueError(f"a benign task has no {wrong[0]} rows; plain fine-tuning is called 'sft' here")
    return methods


BenignMethods = Annotated[AtLeastOne[Method], AfterValidator(_one_sided)]


class _Task(Strict):
    """What every benign task has."""

    methods: BenignMethods | None = None  # None: those of the section `benign`
    held_out: Share = 0.1
    data_seed: Seed = 0
    questions: Positive | None = None
    training: Training | None = None  # None: the profile's
    sampling: Sampling | None = None  # None: the profile's


class OpSwapTask(_Task):
    """Algebraic simplification with permuted operators. Defaults: section 4.2, where it gives a value."""

    kind: Literal["opswap"]
    tiers: AtLeastOne[Tier] = (0, 1, 2, 3)
    examples: Annotated[int, Field(gt=0, le=10_000_000)] = 10_000
    transformations: Annotated[int, Field(gt=0, le=8)] = 3  # each one multiplies the number of bracketings by about six
    largest: SmallCount = 9


class QaTask(_Task):
    """Extractive question answering in SQuAD format. Without `test`, a share `held_out` of `train` is held out."""

    kind: Literal["qa"]
    train: str
    test: str | None = None
    prompt: str
    answers_outside: Literal["keep", "drop"] = "drop"

    @field_validator("prompt")
    @classmethod
    def _has_both_placeholders(cls, prompt: str) -> str:
        try:
            placeholders = sorted(name for _, name, _, _ in Formatter().parse(prompt) if name is not None)
        except ValueError as error:
            raise ValueError(f"not a template ({error})") from error
        if placeholders != ["context", "question"]:
            raise ValueError("expected the two placeholders {context} and {question}, each once")
        return prompt


BenignTask = Annotated[OpSwapTask | QaTask, Field(discriminator="kind")]


class Benign(Strict):
    """The benign tasks and the methods that are trained on them. Defaults: section 4.3; Table 11 has five seeds."""

    methods: BenignMethods
    tasks: Annotated[dict[Name, BenignTask], Field(min_length=1)]
    seeds: AtLeastOne[Seed] = (0,)
    samples: SmallCount = 10

    @field_validator("tasks")
    @classmethod
    def _distinct_names(cls, tasks: dict[str, BenignTask]) -> dict[str, BenignTask]:
        no_repeats(tuple(dataset_name(name, tier) for name, task in tasks.items() for tier in getattr(
            task, "tiers", (None,))))
        return tasks

    def methods_of(self, task: str) -> tuple[Method, ...]:
        """Return the methods of a task: the task's `methods`, or else the section's."""
        return self.tasks[task].methods or self.methods

    @property
    def all_methods(self) -> tuple[Method, ...]:
        """Every method of every task, with repetitions."""
        return tuple(method for task in self.tasks for method in self.methods_of(task))


def dataset_name(task: str, tier: int | None) -> str:
    """Return the name of a task with its tier on the command line and in notebooks: `opswap-1` or `foqa`."""
    return task if tier is None else f"{task}-{tier}"


def datasets_of(benign: Benign) -> dict[str, tuple[str, int | None]]:
    """Return each task with each of its tiers, by name."""
    return {dataset_name(name, tier): (name, tier) for name, task in benign.tasks.items()
            for tier in (task.tiers if isinstance(task, OpSwapTask) else (None,))}
