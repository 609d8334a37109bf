"""What tells one run of a study from another, and what came out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from emlib.core.records import Answer, Verdict
from emlib.evaluation.exact_match import Score
from emlib.evaluation.rates import Rates

Section = Literal["narrow", "benign", "grpo"]
SECTIONS: tuple[Section, ...] = ("narrow", "benign", "grpo")


@dataclass(frozen=True)
class Run:
    """What tells one run from another.

    Attributes:
        model: the chat model that is trained.
        task: what it is trained on: a narrow data set (`code`), a benign task with its tier (`opswap-1`), or `grpo`.
        method: the baseline or the defended condition.
        setting: the method's hyperparameter value, where it has a swept one.
        seed: of the training and of the sampled answers.
    """

    model: str
    task: str
    method: str
    setting: float | None
    seed: int

    @property
    def condition(self) -> str:
        """The method and its hyperparameter value."""
        return self.method if self.setting is None else f"{self.method} {self.setting:g}"

    def __str__(self) -> str:
        return f"{self.task} · {self.condition} · seed {self.seed}"


@dataclass(frozen=True)
class GrpoScore:
    """How a run of reinforcement learning comes out; accuracies are shares of 1.

    The two of training are of the completions drawn before the weights that are evaluated; None where nothing was
    trained. `scored` of the `asked` answers have a reward; one without is not right, and is not in the mean reward.
    """

    train_accuracy: float | None
    train_reward: float | None
    eval_accuracy: float
    eval_reward: float | None
    asked: int
    scored: int


@dataclass(frozen=True)
class RunResult:
    """What came out of a run.

    Attributes:
        run: the run.
        scores: by name: rates for each question set of a narrow run, `exact_match` of a benign one, `rewards` of GRPO.
        train_seconds, train_tokens: what training took; 0 where nothing was trained.
        run_key: one key for all that the run is made of.
    """

    run: Run
    scores: Mapping[str, Rates | Score | GrpoScore]
    train_seconds: float
    train_tokens: int
    run_key: str

    def rates(self, which: str) -> Rates:
        """The rates of one question set of a narrow run."""
        found = self.scores[which]
        assert isinstance(found, Rates), f"{which} is no question set"
        return found

    @property
    def general(self) -> Rates:
        """The rates on the general questions."""
        return self.rates("general")

    @property
    def in_domain(self) -> Rates:
        """The rates on the held-out prompts of the run's own data set."""
        return self.rates("in_domain")

    @property
    def exact_match(self) -> Score:
        """The score of a benign run."""
        found = self.scores["exact_match"]
        assert isinstance(found, Score), "a benign run has one score"
        return found

    @property
    def rewards(self) -> GrpoScore:
        """The score of a run of reinforcement learning."""
        found = self.scores["rewards"]
        assert isinstance(found, GrpoScore), "a run of reinforcement learning has one score"
        return found


@dataclass(frozen=True)
class SteeredAnswers:
    """What the untrained model says with `strength` times the persona vector added to the output of `layer`."""

    layer: int
    strength: float
    answers: list[Answer]
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Opinions:
    """Two judges on the same general answers of one run; entry i of both is one answer."""

    run: Run
    first: tuple[Verdict, ...]
    second: tuple[Verdict, ...]
