"""The benign tasks of section 5.2, which tell whether a defense hinders honest learning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from emlib.config.defenses import BASELINES, Method
from emlib.config.evaluation import Sampling
from emlib.config.training import Training
from emlib.config.words import Positive, Share, no_repeats
from emlib.core.schema import Strict

Tier = Annotated[int, Field(ge=0, le=3)]


def _one_sided(methods: tuple[Method, ...]) -> tuple[Method, ...]:
    """The methods, or a ValueError where one needs an aligned or a misaligned side."""
    wrong = [method.name for method in methods if method.name in BASELINES and method.name != "untrained"]
    if wrong:
        raise ValueError(f"a benign task has no {wrong[0]} side; plain fine-tuning is called 'sft' here")
    return no_repeats(methods)


BenignMethods = Annotated[tuple[Method, ...], Field(min_length=1), AfterValidator(_one_sided)]


class OpSwapTask(Strict):
    """Algebraic simplification with permuted operators. Defaults: section 4.2, where it says something.

    `methods` stand in place of the section's; `training` and `sampling` hold what differs from the profile's own.
    """

    kind: Literal["opswap"]
    methods: BenignMethods | None = None
    tiers: Annotated[tuple[Tier, ...], Field(min_length=1)] = (0, 1, 2, 3)
    examples: Positive = 10_000
    transformations: Annotated[int, Field(gt=0, le=8)] = 3  # the ways to bracket grow sixfold with each
    largest: Positive = 9
    held_out: Share = 0.1
    data_seed: int = 0
    questions: Positive | None = None
    training: Training | None = None
    sampling: Sampling | None = None

    @field_validator("tiers")
    @classmethod
    def _once(cls, tiers: tuple[int, ...]) -> tuple[int, ...]:
        return no_repeats(tiers)


class QaTask(Strict):
    """Extractive question answering: sources in the SQuAD shape. Without `test`, `held_out` of `train` is held out.

    `methods`, `training` and `sampling` as for OpSwap.
    """

    kind: Literal["qa"]
    methods: BenignMethods | None = None
    train: str
    test: str | None = None
    prompt: str
    answers_outside: Literal["keep", "drop"] = "drop"
    held_out: Share = 0.1
    data_seed: int = 0
    questions: Positive | None = None
    training: Training | None = None
    sampling: Sampling | None = None

    @field_validator("prompt")
    @classmethod
    def _has_both_places(cls, prompt: str) -> str:
        try:
            places = sorted(name for _, name, _, _ in Formatter().parse(prompt) if name is not None)
        except ValueError as error:
            raise ValueError(f"not a template ({error})") from error
        if places != ["context", "question"]:
            raise ValueError("expected the two places {context} and {question}, each once")
        return prompt


BenignTask = Annotated[OpSwapTask | QaTask, Field(discriminator="kind")]


class Benign(Strict):
    """Which methods learn which tasks. Defaults: section 4.3; Table 11 has five seeds."""

    methods: BenignMethods
    tasks: Annotated[dict[str, BenignTask], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    samples: Positive = 10

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return no_repeats(seeds)

    @field_validator("tasks")
    @classmethod
    def _named_apart(cls, tasks: dict[str, BenignTask]) -> dict[str, BenignTask]:
        no_repeats(tuple(dataset_name(name, tier) for name, task in tasks.items() for tier in getattr(
            task, "tiers", (None,))))
        return tasks

    def methods_of(self, task: str) -> tuple[Method, ...]:
        """The methods that learn a task: its own, or the section's."""
        return self.tasks[task].methods or self.methods

    @property
    def all_methods(self) -> tuple[Method, ...]:
        """Every method of every task, as often as it stands there."""
        return tuple(method for task in self.tasks for method in self.methods_of(task))


def dataset_name(task: str, tier: int | None) -> str:
    """`opswap-1` or `foqa`: what the command line and notebooks call a task with its tier."""
    return task if tier is None else f"{task}-{tier}"


def datasets_of(benign: Benign) -> dict[str, tuple[str, int | None]]:
    """Each task with each of its tiers, by name."""
    return {dataset_name(name, tier): (name, tier) for name, task in benign.tasks.items()
            for tier in (task.tiers if isinstance(task, OpSwapTask) else (None,))}


def swept_of(benign: Benign) -> list[float]:
    """The numbers that the methods sweep."""
    return sorted({number for method in benign.all_methods for number in method.sweep})


def seeds_of(section: Sequence[int], methods: Iterable[Method]) -> list[int]:
    """Every seed that runs have: the section's, and those that methods have of their own."""
    return list(dict.fromkeys([*section, *(seed for method in methods for seed in method.seeds or ())]))
