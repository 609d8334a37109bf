"""What a run is trained on and how it is evaluated: a narrow data set, a benign task, or reinforcement learning.

A task turns a run into its adapter's step and into the steps that its evaluation ends in, and reads scores from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any, ClassVar, TypeVar

from emlib.config import Benign, BenignTask, Method, OpSwapTask, RlMethod, datasets_of
from emlib.config.methods import SweptMethod
from emlib.core.errors import ProfileError, nearest
from emlib.core.files import read_records
from emlib.core.records import Answer, Verdict
from emlib.core.schema import Strict
from emlib.core.step import Step
from emlib.data.benign import TaskData, load_opswap, load_qa
from emlib.data.lazy import Questions
from emlib.data.sizes import Size, Sizes
from emlib.data.sources import locate
from emlib.evaluation.exact_match import Mark, Score, mark, score
from emlib.evaluation.rates import Denominator, Rates, rates
from emlib.evaluation.rewards import Rewards, by_rule, graded
from emlib.steps.answers import Answers, Verdicts
from emlib.steps.grpo import GrpoAdapter, GrpoAnswers, GrpoRewards
from emlib.steps.recipes import Recipes
from emlib.steps.specs import EvaluationSpec, TrainingSpec
from emlib.store.artefacts import Artefact
from emlib.study.runs import GrpoScore, Run, Section
from emlib.training.rl.records import Rewarded

UNTRAINED = "untrained"
GRPO = "grpo"
Settings = TypeVar("Settings", bound=Strict)
Find = Callable[[Step], Artefact | None]


class Task(ABC):
    """What runs of one name are trained on and evaluated by."""

    section: ClassVar[Section]

    def __init__(self, name: str, recipes: Recipes) -> None:
        self.name, self.recipes, self.profile = name, recipes, recipes.profile

    @property
    @abstractmethod
    def methods(self) -> Sequence[SweptMethod]:
        """The conditions under which it is learnt."""

    @property
    @abstractmethod
    def seeds(self) -> Sequence[int]:
        """The seeds of those methods that have none of their own."""

    def runs(self) -> Iterator[Run]:
        """Every run of the task, in the profile's order."""
        for method in self.methods:
            for setting in method.sweep or (None,):
                for seed in getattr(method, "seeds", None) or self.seeds:
                    yield Run(self.profile.model.name, self.name, method.name, setting, seed)

    def method(self, name: str) -> SweptMethod:
        """The profile's method of that name; a baseline may be needed that the profile does not list."""
        listed = next((method for method in self.methods if method.name == name), None)
        return Method(name=name) if listed is None else listed

    def defenses(self, run: Run) -> tuple[Any, ...]:
        """What protects the run's training, with the hyperparameter value set."""
        return self.method(run.method).at(run.setting)

    @abstractmethod
    def adapter(self, run: Run) -> Any:
        """The step of the run's adapter; None where nothing is trained."""

    @abstractmethod
    def evaluation(self, run: Run) -> Mapping[str, Step]:
        """The steps that the run's evaluation ends in, by the name of what is evaluated."""

    @abstractmethod
    def answers(self, run: Run) -> Mapping[str, Answers]:
        """The steps of the run's answers, by the same names."""

    @abstractmethod
    def scores(self, run: Run, find: Find, of: Denominator) -> Mapping[str, Rates | Score | GrpoScore] | None:
        """What came out, or None where the run is not finished."""


class NarrowTask(Task):
    """Fine-tuning on a narrow data set, evaluated by question sets and a judge (section 4.3)."""

    section: ClassVar = "narrow"

    @property
    def methods(self) -> Sequence[Method]:
        """The profile's."""
        return self.profile.methods

    @property
    def seeds(self) -> Sequence[int]:
        """The profile's."""
        return self.profile.seeds

    def training(self, run: Run) -> TrainingSpec | None:
        """What the run's adapter is trained on; None where nothing is trained."""
        if run.method == UNTRAINED:
            return None
        side = "aligned" if run.method == "aligned" else "misaligned"
        return self.recipes.narrow(run.task, side, self.defenses(run), run.seed)  # type: ignore[arg-type]

    def adapter(self, run: Run) -> Any:
        """The step of the run's adapter."""
        spec = self.training(run)
        return None if spec is None else self.recipes.adapter(spec, str(run))

    def asked(self, run: Run) -> Mapping[str, EvaluationSpec]:
        """What the run is asked, by question set."""
        evaluation = self.profile.evaluation
        sets = {"general": (self.recipes.general, evaluation.general_samples),
                "in_domain": (self.recipes.in_domain(run.task), evaluation.in_domain_samples),
                **{name: (self.recipes.questions(name), one.samples) for name, one in evaluation.sets.items()}}
        return {name: EvaluationSpec(questions, samples, evaluation.sampling, run.seed)
                for name, (questions, samples) in sets.items()}

    def answers(self, run: Run) -> Mapping[str, Answers]:
        """The run's answers to each question set."""
        adapter = self.adapter(run)
        return {name: self.recipes.answers(adapter, asked) for name, asked in self.asked(run).items()}

    def evaluation(self, run: Run) -> Mapping[str, Verdicts]:
        """The verdicts on each question set."""
        return {name: self.recipes.verdicts(answers, name) for name, answers in self.answers(run).items()}

    def scores(self, run: Run, find: Find, of: Denominator) -> Mapping[str, Rates] | None:
        """The rates on each question set."""
        found = {name: find(step) for name, step in self.evaluation(run).items()}
        return None if None in found.values() else {
            name: rates(read_records(artefact.file("verdicts.jsonl"), Verdict), of=of,
                        resamples=self.profile.evaluation.bootstrap)
            for name, artefact in found.items() if artefact is not None}


class BenignTaskRuns(Task):
    """Fine-tuning on a benign task, evaluated by exact match (section 5.2)."""

    section: ClassVar = "benign"

    def __init__(self, name: str, recipes: Recipes) -> None:
        super().__init__(name, recipes)
        assert recipes.profile.benign is not None, "a benign task is named by the section 'benign'"
        self.spec: Benign = recipes.profile.benign
        self.task_name, self.tier = datasets_of(self.spec)[name]

    @property
    def task(self) -> BenignTask:
        """The task as the profile describes it."""
        return self.spec.tasks[self.task_name]

    @property
    def methods(self) -> Sequence[Method]:
        """The task's own, or the section's."""
        return self.spec.methods_of(self.task_name)

    @property
    def seeds(self) -> Sequence[int]:
        """The section's."""
        return self.spec.seeds

    @cached_property
    def data(self) -> TaskData:
        """Rows to train on and questions to ask."""
        return (load_opswap(self.task, self.tier or 0) if isinstance(self.task, OpSwapTask)
                else load_qa(self.task, locate))

    def training(self, run: Run) -> TrainingSpec | None:
        """What the run's adapter is trained on; None where nothing is trained."""
        if run.method == UNTRAINED:
            return None
        training = over(self.profile.training, self.task.training)
        return self.recipes.training(self.name, self.name, lambda: self.data.train, lambda sizes: self._size(sizes)[0],
                                     self.defenses(run), training, run.seed)

    def adapter(self, run: Run) -> Any:
        """The step of the run's adapter."""
        spec = self.training(run)
        return None if spec is None else self.recipes.adapter(spec, str(run))

    def answers(self, run: Run) -> Mapping[str, Answers]:
        """The run's answers to the test questions."""
        sampling = over(self.profile.evaluation.sampling, self.task.sampling)
        questions = Questions(self.name, lambda: [item.question for item in self.data.test],
                              lambda sizes: self._size(sizes)[1])
        asked = EvaluationSpec(questions, self.spec.samples, sampling, run.seed)
        return {"exact_match": self.recipes.answers(self.adapter(run), asked)}

    def evaluation(self, run: Run) -> Mapping[str, Step]:
        """The answers: exact match needs no judge, and nothing of it is kept."""
        return self.answers(run)

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """How each answer comes out."""
        return mark(answers, self.data.test, numbers=isinstance(self.task, OpSwapTask))

    def scores(self, run: Run, find: Find, of: Denominator) -> Mapping[str, Score] | None:
        """Exact match, strict and lenient."""
        found = find(self.answers(run)["exact_match"])
        if found is None:
            return None
        answers = read_records(found.file("answers.jsonl"), Answer)
        cut = sum(answer.finish_reason == "length" for answer in answers)
        return {"exact_match": score(self.marks(answers), cut=cut, resamples=self.profile.evaluation.bootstrap)}

    def _size(self, sizes: Sizes) -> tuple[Size, Size]:
        """What is trained on and what is asked, in sizes."""
        return sizes.benign(self.task, self.tier)


class GrpoTask(Task):
    """Reinforcement learning by GRPO, evaluated by the rewards of held-out problems (section 4.2)."""

    section: ClassVar = "grpo"

    @property
    def methods(self) -> Sequence[RlMethod]:
        """The section's."""
        return self.recipes.grpo.methods

    @property
    def seeds(self) -> Sequence[int]:
        """The section's."""
        return self.recipes.grpo.seeds

    def adapter(self, run: Run) -> GrpoAdapter | None:
        """The step of the run's adapter."""
        return None if run.method == UNTRAINED else self.recipes.reinforced(self.defenses(run), run.seed, str(run))

    def answers(self, run: Run) -> Mapping[str, GrpoAnswers]:
        """The run's answers to the held-out problems."""
        return {"rewards": self.recipes.grpo_answers(self.adapter(run), run.seed)}

    def evaluation(self, run: Run) -> Mapping[str, Step]:
        """The judge's rewards; the answers themselves where rules give the rewards, of which nothing is kept."""
        answers = self.answers(run)["rewards"]
        return {"rewards": self.recipes.grpo_rewards(answers) or answers}

    def rewards(self, run: Run, find: Find) -> list[Rewards | None] | None:
        """The reward of each answer, None where it could not be scored; None where they are not there yet.

        Rules are applied here and now; a judge's rewards are read, and never asked for.
        """
        step = self.evaluation(run)["rewards"]
        found = find(step)
        if found is None:
            return None
        if isinstance(step, GrpoRewards):
            return [None if one.parts is None else Rewards(**one.parts)
                    for one in read_records(found.file("rewards.jsonl"), Rewarded)]
        answers = read_records(found.file("answers.jsonl"), Answer)
        return by_rule(graded(self.recipes.problems.value, answers))

    def scores(self, run: Run, find: Find, of: Denominator) -> Mapping[str, GrpoScore] | None:
        """Accuracy and mean reward, in training and afterwards."""
        rewards, step = self.rewards(run, find), self.adapter(run)
        adapter = None if step is None else find(step)
        if rewards is None or (adapter is None) != (step is None):
            return None
        got = [one for one in rewards if one is not None]
        right, reward = (None, None) if adapter is None else (
            adapter.facts["train_right"], adapter.facts["train_reward"])
        return {"rewards": GrpoScore(right, reward, sum(one.right for one in got) / len(rewards),
                                     fmean(one.total for one in got) if got else None, len(rewards), len(got))}


def tasks_of(recipes: Recipes) -> dict[str, Task]:
    """The tasks of a profile, by name.

    Raises:
        ProfileError: two of them have one name.
    """
    profile = recipes.profile
    found: list[Task] = [NarrowTask(name, recipes) for name in profile.datasets]
    if profile.benign is not None:
        found += [BenignTaskRuns(name, recipes) for name in datasets_of(profile.benign)]
    if profile.grpo is not None:
        found.append(GrpoTask(GRPO, recipes))
    names = [task.name for task in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ProfileError(f"Profile '{recipes.study}' has two tasks called '{twice[0]}', of a data set, a benign task "
                           f"or '{GRPO}'. Rename one of them.")
    return {task.name: task for task in found}


def sliced(what: str, asked: Iterable[Any] | None, there: Sequence[Any]) -> list[Any]:
    """What is asked for of what is there, or all of it (None).

    Raises:
        ProfileError: something is asked for that is not there.
    """
    if asked is None:
        return list(there)
    if isinstance(asked, str):
        raise ProfileError(f"Expected a list, such as [{asked!r}], and found the text {asked!r}.")
    wanted = list(asked)
    for item in wanted:
        if item not in there:
            known = ", ".join(map(str, there)) or "none"
            raise ProfileError(f"The profile has no {what} {item!r}.{nearest(str(item), map(str, there))} "
                               f"It has: {known}.")
    return wanted


def over(settings: Settings, changes: Settings | None) -> Settings:
    """`settings` with what a task's own section says, and nothing of what that leaves at its default."""
    if changes is None:
        return settings
    return settings.model_copy(update={name: getattr(changes, name) for name in changes.model_fields_set})
