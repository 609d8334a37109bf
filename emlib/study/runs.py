"""The runs of a study, and their results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from emlib.core.records import Answer, Verdict
from emlib.evaluation.exact_match import ExactMatchScore
from emlib.evaluation.metrics import MetricRate
from emlib.evaluation.rates import Rates

Section = Literal["narrow", "benign", "grpo"]
FILES: dict[Section, str] = {"narrow": "results.csv", "benign": "benign.csv", "grpo": "grpo.csv"}  # of their results
SECTIONS = tuple(FILES)
RUNS: dict[Section, str] = {"narrow": "runs on narrow data", "benign": "runs on benign tasks",
                            "grpo": "runs of reinforcement learning"}  # for readers


@dataclass(frozen=True)
class Run:
    """One run of a study, identified by these five values."""

    model: str  # the chat model that is trained
    task: str  # what it is trained on: a narrow data set (`code`), a benign task with its tier (`opswap-1`), or `grpo`
    method: str  # the baseline or the defended condition
    setting: float | None  # the value of the method's swept hyperparameter; None if it sweeps none
    seed: int  # of the training and of the sampled answers

    @property
    def condition(self) -> str:
        """The method and its hyperparameter value."""
        return self.method if self.setting is None else f"{self.method} {self.setting:g}"

    def baseline(self, method: str) -> Run:
        """Return the run of a baseline on the same data set and with the same seed."""
        return replace(self, method=method, setting=None)

    def __str__(self) -> str:
        return f"{self.task} · {self.condition} · seed {self.seed}"


def first(runs: Iterable[Run], method: str | None = None) -> Run | None:
    """Return the first run, or the first run of a method; None if there is none."""
    return next((run for run in runs if method in (None, run.method)), None)


def like_first(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that share the first one's task and seed: one for each condition, to be compared side by side."""
    return [run for run in runs if (run.task, run.seed) == (runs[0].task, runs[0].seed)]


@dataclass(frozen=True)
class GrpoScore:
    """The result of a run of reinforcement learning. Accuracies are shares of 1."""

    train_accuracy: float | None  # of the completions sampled before the weights that are evaluated; None: untrained
    train_reward: float | None  # likewise
    eval_accuracy: float  # an answer without a reward counts as wrong
    eval_reward: float | None  # the mean over answers with a reward
    asked: int
    scored: int  # answers with a reward


AnyScore = Rates | MetricRate | ExactMatchScore | GrpoScore


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    The names of scores are the question sets of a narrow run, and `set_metric` for a set's own metrics; `exact_match`
    of a benign run; `rewards` of GRPO.
    """

    run: Run
    scores: Mapping[str, AnyScore]
    train_seconds: float | None  # 0 if nothing was trained; None if the adapter is no longer in the store
    train_tokens: int | None  # likewise
    run_key: str  # identifies all steps of the run

    @property
    def sets(self) -> dict[str, Rates]:
        """The rates of a narrow run by question set."""
        return {name: found for name, found in self.scores.items() if isinstance(found, Rates)}

    @property
    def metrics(self) -> dict[str, MetricRate]:
        """The rates on the question sets' own metrics, by `set_metric`."""
        return {name: found for name, found in self.scores.items() if isinstance(found, MetricRate)}

    @property
    def general(self) -> Rates:
        """The rates on the general questions."""
        return self.sets["general"]

    @property
    def in_domain(self) -> Rates:
        """The rates on the held-out prompts of the run's own data set."""
        return self.sets["in_domain"]

    @property
    def exact_match(self) -> ExactMatchScore:
        """The score of a benign run."""
        return cast(ExactMatchScore, self.scores["exact_match"])

    @property
    def rewards(self) -> GrpoScore:
        """The score of a run of reinforcement learning."""
        return cast(GrpoScore, self.scores["rewards"])


@dataclass(frozen=True)
class SteeringPoint:
    """The untrained model's answers with `strength` times the persona vector added to the output of `layer`."""

    layer: int
    strength: float
    answers: list[Answer]
    verdicts: list[Verdict]


@dataclass(frozen=True)
class TrajectoryPoint:
    """A run after a share of its training steps, or of further ones: their number, and the verdicts by question set."""

    share: float
    steps: int
    verdicts: Mapping[str, list[Verdict]]


@dataclass(frozen=True)
class Opinions:
    """Two judges' verdicts on the same general answers of one run; entry i of both is of the same answer."""

    run: Run
    first: tuple[Verdict, ...]
    second: tuple[Verdict, ...]
