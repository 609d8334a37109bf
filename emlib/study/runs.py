"""What a study is made of: its runs, what is fitted and asked for each, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from emlib.config import Sampling, Training
from emlib.core.defense import Defense
from emlib.core.records import Answer, Example, Question, Verdict
from emlib.evaluation.rates import Rates

QuestionSet = Literal["general", "in_domain"]
QUESTION_SETS: tuple[QuestionSet, ...] = get_args(QuestionSet)


@dataclass(frozen=True)
class Run:
    """What tells one run from another. `setting` is the method's one swept number, where it has one."""

    model: str
    dataset: str
    method: str
    setting: float | None
    seed: int

    def __str__(self) -> str:
        return in_words(self.dataset, self.method, self.setting, self.seed)


def in_words(dataset: str, method: str, setting: float | None, seed: int) -> str:
    """What people read of a run."""
    swept = "" if setting is None else f" {setting:g}"
    return f"{dataset} · {method}{swept} · seed {seed}"


@dataclass(frozen=True)
class Steered:
    """What the untrained model says with `strength` times the persona vector added to the output of `layer`."""

    layer: int
    strength: float
    answers: list[Answer]
    verdicts: list[Verdict]


@dataclass(frozen=True)
class RunResult:
    """What came out of a run."""

    run: Run
    general: Rates
    in_domain: Rates
    train_seconds: float
    train_tokens: int
    run_key: str


@dataclass(frozen=True)
class Fit:
    """What an adapter is fitted to, and how; the model and the shape of the adapter are the profile's.

    `dataset` names what `rows` are of: interleaving takes no scorer that has seen it.
    """

    dataset: str
    rows: tuple[Example, ...]
    defenses: tuple[Defense, ...]
    training: Training
    seed: int


@dataclass(frozen=True)
class Quiz:
    """What a model is asked, how often, and how its answers are drawn."""

    questions: Sequence[Question]
    samples: int
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class Asked:
    """What a fitted model is asked, or the base model where `fit` is None; `name` is what progress calls it.

    `read` is given each batch of its answers as soon as it is drawn.
    """

    name: str
    fit: Fit | None
    quiz: Quiz
    read: Callable[[list[Answer]], object] | None = None
