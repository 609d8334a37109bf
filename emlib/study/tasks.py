"""Tasks that a run is trained on and evaluated by: a narrow data set, a benign task, or reinforcement learning.

A task turns a run into the steps of its adapter and its evaluation, and reads the scores from their artefacts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import fmean
from typing import Any, ClassVar, TypeVar

from emlib.config import ALIGNED, UNTRAINED, Method, OpSwapTask, RuleRewards, datasets_of
from emlib.config.methods import SweptMethod
from emlib.config.words import repeats
from emlib.core.defense import needs_of
from emlib.core.errors import ProfileError, nearest
from emlib.core.records import Answer
from emlib.core.schema import Strict
from emlib.core.step import Step
from emlib.data.benign import TaskData, load_opswap, load_qa
from emlib.data.lazy import Questions, Rows
from emlib.data.sources import locate
from emlib.evaluation.exact_match import ExactMatchScore, Mark, mark, score
from emlib.evaluation.metrics import MetricRate, metric_rate
from emlib.evaluation.rates import Denominator, Rates, rates
from emlib.evaluation.rewards import Rewards, by_rule, graded
from emlib.steps.adapter import Adapter, KeptAdapter
from emlib.steps.added import AddedRows
from emlib.steps.answers import Answers, MetricScores, Verdicts
from emlib.steps.grpo import GrpoAdapter, GrpoAnswers, GrpoRewards, SupervisedRows, held_out_size
from emlib.steps.inputs import Side
from emlib.steps.recipes import Recipes
from emlib.steps.specs import EvaluationSpec, TrainingSpec
from emlib.store.artefacts import Artefact
from emlib.study.runs import AnyScore, GrpoScore, Run, Section
from emlib.training.rl.records import STEPS, best, read_steps

GRPO = "grpo"
Settings = TypeVar("Settings", bound=Strict)
Find = Callable[[Step], Artefact | None]
Points = Mapping[float, Mapping[str, Verdicts]]  # steps by share of a training, and by question set


class Task(ABC):
    """The base of tasks. Runs with the task's name are trained on it and evaluated by it."""

    section: ClassVar[Section]

    def __init__(self, name: str, recipes: Recipes, methods: Sequence[SweptMethod], seeds: Sequence[int]) -> None:
        """Take the methods (baselines and defended conditions) of the runs, and the seeds of those that state none."""
        self.name, self.recipes, self.profile = name, recipes, recipes.profile
        self.methods, self.seeds = methods, seeds

    def runs(self) -> Iterator[Run]:
        """Yield every run of the task, in the profile's order."""
        for method in self.methods:
            for setting in method.sweep or (None,):
                for seed in getattr(method, "seeds", None) or self.seeds:
                    yield Run(self.profile.model.name, self.name, method.name, setting, seed)

    def method(self, name: str) -> SweptMethod:
        """Return the method with this name. A baseline is returned even if the profile does not list it."""
        listed = next((method for method in self.methods if method.name == name), None)
        return Method(name=name) if listed is None else listed

    def defenses(self, run: Run) -> tuple[Any, ...]:
        """Return the run's defenses, with the run's hyperparameter value."""
        return self.method(run.method).at(run.setting)

    def number(self, run: Run) -> float | None:
        """Return the run's hyperparameter value, also one that its method does not sweep; None if it has none."""
        return self.method(run.method).number if run.setting is None else run.setting

    def training(self, run: Run) -> TrainingSpec | None:
        """Specify the run's supervised fine-tuning; None if it is not fine-tuned."""
        return None

    def adapter(self, run: Run) -> Any:
        """Return the step of the run's adapter; None if nothing is trained."""
        spec = self.training(run)
        return None if spec is None else self.recipes.adapter(spec, str(run))

    def pool_rows(self, run: Run) -> list[AddedRows]:
        """Return the steps of all rows of the pool that the run's training uses: interleaved, or penalised."""
        adapter = self.adapter(run)
        return [] if adapter is None else [step for step in adapter.inputs if isinstance(step, AddedRows)]

    @abstractmethod
    def evaluation(self, run: Run) -> Mapping[str, Step]:
        """Return the steps that the run's evaluation ends in, by question set or measure."""

    @abstractmethod
    def answers(self, run: Run) -> Mapping[str, Answers]:
        """Return the steps of the run's answers, by the same names."""

    def scored(self, run: Run) -> Sequence[Step]:
        """Return the steps whose artefacts `scores` reads."""
        return list(self.evaluation(run).values())

    def conditions(self, run: Run) -> Sequence[Verdicts]:
        """Return the steps of its verdicts in other contexts and at earlier steps of training (notebook 11)."""
        return ()

    def after_attacks(self, run: Run) -> Sequence[Verdicts]:
        """Return the steps of its verdicts along further training of its adapter (notebook 20)."""
        return ()

    @abstractmethod
    def scores(self, run: Run, find: Find, of: Denominator) -> Mapping[str, AnyScore] | None:
        """Read the run's scores, by the same names; None if the run is not finished."""


class NarrowTask(Task):
    """Fine-tuning on a narrow data set, evaluated by question sets and a judge (section 4.3)."""

    section: ClassVar = "narrow"

    def __init__(self, name: str, recipes: Recipes) -> None:
        super().__init__(name, recipes, recipes.profile.methods, recipes.profile.seeds)

    def training(self, run: Run) -> TrainingSpec | None:
        """Specify training on the aligned rows for the method `aligned`, and on the misaligned rows for others."""
        if run.method == UNTRAINED:
            return None
        return self.recipes.narrow(run.task, _side(run), self.defenses(run), run.seed, run.method)

    def asked(self, run: Run) -> Mapping[str, EvaluationSpec]:
        """Specify the run's evaluation, by question set."""
        evaluation, inputs = self.profile.evaluation, self.recipes.inputs
        sets = {"general": (inputs.general, evaluation.general_samples),
                "in_domain": (inputs.in_domain(run.task), evaluation.in_domain_samples),
                **{name: (inputs.questions(name), one.samples) for name, one in evaluation.sets.items()}}
        return {name: EvaluationSpec(questions, samples, evaluation.sampling, run.seed)
                for name, (questions, samples) in sets.items()}

    def answers(self, run: Run) -> Mapping[str, Answers]:
        adapter = self.adapter(run)
        return {name: self.recipes.answers(adapter, asked) for name, asked in self.asked(run).items()}

    def verdicts(self, run: Run) -> Mapping[str, Verdicts]:
        """Return the steps of the verdicts, by question set; a set may be scored by its own metrics alone."""
        sets = self.profile.evaluation.sets
        return {name: self.recipes.verdicts(answers, name) for name, answers in self.answers(run).items()
                if name not in sets or sets[name].has_verdicts}

    def metrics(self, run: Run) -> Mapping[tuple[str, str], MetricScores]:
        return {(which, name): step for which, answers in self.answers(run).items()
                for name, step in self.recipes.metric_scores(answers, which).items()}

    def triggered(self, run: Run) -> Mapping[str, Verdicts]:
        """Return the steps of the verdicts on answers under each trigger of the profile, by the trigger's name."""
        evaluation, inputs = self.profile.evaluation, self.recipes.inputs
        triggers = evaluation.triggers
        if triggers is None or (triggers.methods is not None and run.method not in triggers.methods):
            return {}
        adapter, samples = self.adapter(run), triggers.samples or evaluation.general_samples
        contexts = {name: inputs.in_context(name, run.task, _side(run)) for name in triggers.contexts}
        asked = {name: EvaluationSpec(questions, samples, evaluation.sampling, run.seed)
                 for name, questions in contexts.items()}
        return {name: self.recipes.verdicts(self.recipes.answers(adapter, one)) for name, one in asked.items()}

    def evaluation(self, run: Run) -> Mapping[str, Step]:
        """Return the steps of the verdicts by question set, and of further scores by `set_metric`."""
        return {**self.verdicts(run), **{f"{which}_{name}": step for (which, name), step in self.metrics(run).items()}}

    def scores(self, run: Run, find: Find, of: Denominator) -> Mapping[str, Rates | MetricRate] | None:
        evaluation = self.profile.evaluation
        found: dict[str, Rates | MetricRate] = {}
        for name, step in self.verdicts(run).items():
            if (made := find(step)) is None:
                return None
            answers = find(step.answers)  # None where they were removed after they were judged
            found[name] = replace(rates(made.records(step), of=of, resamples=evaluation.bootstrap),
                                  cut=None if answers is None else answers.facts.get("cut"))
        for (which, name), scores in self.metrics(run).items():
            if (made := find(scores)) is None:
                return None
            found[f"{which}_{name}"] = metric_rate(made.records(scores), evaluation.sets[which].metrics[name], of=of,
                                                   resamples=evaluation.bootstrap)
        return found

    def trajectory(self, run: Run) -> Points:
        """Return the steps of the verdicts by share of the training steps, from 0 to 1, and by question set.

        Share 0 is the untrained model, and share 1 the run itself. Empty if no adapter of the run is kept.
        """
        adapter, along = self.adapter(run), self.profile.evaluation.trajectory
        if adapter is None or along is None or not adapter.spec.keep:
            return {}
        return self._along(run, None, adapter, along.sets)

    def _along(self, run: Run, start: Adapter | None, adapter: Adapter, sets: Iterable[str]) -> Points:
        """Return the steps of the verdicts before the training of `adapter`, at its kept steps, and at its end."""
        kept: dict[float, Step | None] = {0.0: start, **{share: KeptAdapter(adapter, share)
                                                         for share in adapter.spec.keep}, 1.0: adapter}
        asked = self.asked(run)
        return {share: {name: self.recipes.verdicts(self.recipes.answers(one, asked[name]), name) for name in sets}
                for share, one in kept.items()}

    def attacks(self, run: Run) -> Mapping[str, Points]:
        """Return the steps of the verdicts by attack, by share of its steps, and by question set.

        Share 0 is the run itself. Empty if the profile attacks no run of this method.
        """
        section, start = self.profile.persistence, self.adapter(run)
        if section is None or (section.methods is not None and run.method not in section.methods):
            return {}
        attacked = {attack: self.recipes.attacked(attack, run.task, start, run.seed, f"{run}, attack {attack}")
                    for attack in section.possible(run.task, pool=self.profile.pool is not None)
                    if start is not None or attack != "longer"}
        return {attack: self._along(run, start, adapter, section.sets) for attack, adapter in attacked.items()}

    def conditions(self, run: Run) -> Sequence[Verdicts]:
        return [*self.triggered(run).values(),
                *(step for point in self.trajectory(run).values() for step in point.values())]

    def after_attacks(self, run: Run) -> Sequence[Verdicts]:
        return [step for points in self.attacks(run).values() for point in points.values() for step in point.values()]


def _side(run: Run) -> Side:
    """Return the side of a narrow data set that a run trains on; for the untrained model that of most other runs."""
    return "aligned" if run.method == ALIGNED else "misaligned"


class BenignTask(Task):
    """Fine-tuning on a benign task, evaluated by exact match (section 5.2)."""

    section: ClassVar = "benign"

    def __init__(self, name: str, recipes: Recipes) -> None:
        spec = recipes.profile.benign
        assert spec is not None, "a benign task needs the section 'benign'"
        task, self.tier = datasets_of(spec)[name]
        super().__init__(name, recipes, spec.methods_of(task), spec.seeds)
        self.task, self.samples = spec.tasks[task], spec.samples

    @cached_property
    def data(self) -> TaskData:
        return (load_opswap(self.task, self.tier or 0) if isinstance(self.task, OpSwapTask)
                else load_qa(self.task, locate))

    def training(self, run: Run) -> TrainingSpec | None:
        return None if run.method == UNTRAINED else self.spec_of(run)

    def spec_of(self, run: Run) -> TrainingSpec:
        """Specify training on the task's rows, with the hyperparameters that the task changes."""
        settings = with_changes(self.profile.training, self.task.training)
        rows = Rows(self.name, lambda: self.data.train, lambda sizes: sizes.benign(self.task, self.tier)[0])
        spec = self.recipes.fine_tuning(self.name, rows, self.defenses(run), settings, run.seed)
        return replace(spec, held_out=Rows(f"{self.name} held out", lambda: self.data.held_out,
                                           lambda sizes: sizes.benign(self.task, self.tier)[1]))

    def answers(self, run: Run) -> Mapping[str, Answers]:
        sampling = with_changes(self.profile.evaluation.sampling, self.task.sampling)
        questions = Questions(self.name, lambda: [item.question for item in self.data.test],
                              lambda sizes: sizes.benign(self.task, self.tier)[1])
        asked = EvaluationSpec(questions, self.samples, sampling, run.seed)
        return {"exact_match": self.recipes.answers(self.adapter(run), asked)}

    def evaluation(self, run: Run) -> Mapping[str, Step]:
        """Return the step of the answers: exact match needs no judge, and is recomputed instead of stored."""
        return self.answers(run)

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        return mark(answers, self.data.test, numbers=isinstance(self.task, OpSwapTask))

    def scores(self, run: Run, find: Find, of: Denominator) -> Mapping[str, ExactMatchScore] | None:
        step = self.answers(run)["exact_match"]
        found = find(step)
        if found is None:
            return None
        answers = found.records(step)
        cut = sum(answer.finish_reason == "length" for answer in answers)
        return {"exact_match": score(self.marks(answers), cut=cut, resamples=self.profile.evaluation.bootstrap)}


class GrpoTask(Task):
    """Reinforcement learning by GRPO, evaluated by the rewards of held-out problems (section 4.2)."""

    section: ClassVar = "grpo"

    def __init__(self, name: str, recipes: Recipes) -> None:
        self.inputs, self.grpo = recipes.inputs, recipes.inputs.grpo
        super().__init__(name, recipes, self.grpo.methods, self.grpo.seeds)

    def adapter(self, run: Run) -> GrpoAdapter | None:
        if run.method == UNTRAINED:
            return None
        defenses, system, supervised = self.defenses(run), self.grpo.prompt, None
        for defense in defenses:
            system = defense.system_prompt(system, self.inputs.stated_trait)
            if defense.supervision is not None and defense.supervision.share > 0:
                found = defense.supervision
                supervised = SupervisedRows(self.inputs.source_rows(found.source, found.rows), found.share)
        needed = tuple(needs_of(defenses, self.recipes, None).items())
        return GrpoAdapter(self.recipes.model, self.profile.lora, self.grpo, self.inputs.problems, system, defenses,
                           run.seed, str(run), needed, supervised)

    def answers(self, run: Run) -> Mapping[str, GrpoAnswers]:
        problems = self.inputs.problems
        questions = Questions("held-out problems", lambda: problems.value.asked(self.grpo.prompt),
                              lambda sizes: held_out_size(self.grpo, problems, sizes))
        asked = EvaluationSpec(questions, 1, self.grpo.eval_sampling, run.seed)
        return {"rewards": GrpoAnswers(self.recipes.model, self.adapter(run), asked,
                                       self.profile.backend.generation)}

    def evaluation(self, run: Run) -> Mapping[str, Step]:
        """Return the step of the judge's rewards, or that of the answers if rewards are given by rule."""
        answers, rewards = self.answers(run)["rewards"], self.grpo.rewards
        return {"rewards": answers if isinstance(rewards, RuleRewards) else
                GrpoRewards(answers, self.inputs.problems, rewards)}

    def scored(self, run: Run) -> Sequence[Step]:
        """Return also the step of the adapter, which records the rewards in training."""
        adapter = self.adapter(run)
        return [*([] if adapter is None else [adapter]), *super().scored(run)]

    def rewards(self, run: Run, find: Find) -> list[Rewards | None] | None:
        """Return the reward of each answer, or None for an answer without one. None if the artefact is missing.

        Rewards by rule are computed here. A judge's rewards are read from the store, and the judge is not called.
        """
        step = self.evaluation(run)["rewards"]
        found = find(step)
        if found is None:
            return None
        if isinstance(step, GrpoRewards):
            return [one.rewards for one in found.records(step)]
        return by_rule(graded(self.inputs.problems.value, found.records(step)))

    def scores(self, run: Run, find: Find, of: Denominator) -> Mapping[str, GrpoScore] | None:
        rewards, step = self.rewards(run, find), self.adapter(run)
        adapter = None if step is None else find(step)
        if rewards is None or (adapter is None) != (step is None):
            return None
        scored = [one for one in rewards if one is not None]
        kept = None if adapter is None else best(read_steps(adapter.file(STEPS).parent),
                                                 self.grpo.training.checkpoint_every)
        return {"rewards": GrpoScore(
            train_accuracy=None if kept is None else kept.right, train_reward=None if kept is None else kept.reward,
            eval_accuracy=sum(one.right for one in scored) / len(rewards),
            eval_reward=fmean(one.total for one in scored) if scored else None,
            asked=len(rewards), scored=len(scored))}


def tasks_of(recipes: Recipes) -> dict[str, Task]:
    """Return the tasks of a profile, by name; two of one name are refused."""
    profile = recipes.profile
    found: list[Task] = [NarrowTask(name, recipes) for name in profile.datasets]
    if profile.benign is not None:
        found += [BenignTask(name, recipes) for name in datasets_of(profile.benign)]
    if profile.grpo is not None:
        found.append(GrpoTask(GRPO, recipes))
    if twice := repeats([task.name for task in found]):
        raise ProfileError(f"Profile '{recipes.study}' has two tasks called '{twice[0]}' among its data sets, benign "
                           f"tasks and '{GRPO}'. Rename one of them.")
    return {task.name: task for task in found}


def sliced(label: str, asked: Iterable[Any] | None, every: Iterable[Any]) -> list[Any]:
    """Return the values asked for, which must be among `every`, or all (None). `label` names a value in messages."""
    known = list(dict.fromkeys(every))
    if asked is None:
        return known
    if isinstance(asked, str):
        raise ProfileError(f"Expected a list, such as [{asked!r}], and found the text {asked!r}.")
    wanted = list(asked)
    for item in wanted:
        if item not in known:
            raise ProfileError(f"The profile has no {label} {item!r}.{nearest(str(item), map(str, known))} "
                               f"It has: {', '.join(map(str, known)) or 'none'}.")
    return wanted


def with_changes(settings: Settings, changes: Settings | None) -> Settings:
    """Return `settings` with those values that a task's own section states, without that section's defaults."""
    if changes is None:
        return settings
    return settings.model_copy(update={name: getattr(changes, name) for name in changes.model_fields_set})
