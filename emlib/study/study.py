"""A study: the runs of a profile, what each is made of, and what came out.

A run is one (model, task, method, setting, seed). Its task says which steps it needs; the store has what is made of
them. `emlib.make` makes what is missing, and is loaded only where something has to be made, so that looking at a
finished study is instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emlib.config import BASELINES, Profile, Trait, load_profile
from emlib.core import paths
from emlib.core.digests import key_of
from emlib.core.errors import JudgeWaits, StoreError
from emlib.core.files import read_records
from emlib.core.records import Answer, Question, Verdict
from emlib.core.step import Step
from emlib.data.domains import NarrowData
from emlib.evaluation.rates import Denominator
from emlib.evaluation.records import Choice, Projected
from emlib.steps.pool import AddedRows
from emlib.steps.recipes import Recipes
from emlib.steps.specs import TrainingSpec
from emlib.store.artefacts import Artefact, Store
from emlib.study import overrides, ownership, results
from emlib.study.runs import SECTIONS, Opinions, Run, RunResult, Section, SteeredAnswers
from emlib.study.tasks import BenignTaskRuns, NarrowTask, Task, sliced, tasks_of
from emlib.training.records import StepRecord, read_log
from emlib.training.rl.records import COMPLETIONS, Completion, RlStep, read_steps

if TYPE_CHECKING:
    from emlib.make.session import Session


class Study:
    """The runs of one profile over one store."""

    def __init__(self, name: str, profile: Profile, store: Store, stated_in: str | None = None) -> None:
        self.name, self.profile, self.store, self.stated_in = name, profile, store, stated_in
        self.recipes = Recipes(profile, name)

    # --- where things are

    @property
    def folder(self) -> Path:
        """Where this profile's results, tables, figures and executed notebooks go."""
        return paths.runs() / self.name

    @property
    def budget(self) -> str:
        """Whose budget a paid judge works on: a profile's, with whatever overrides."""
        return overrides.base_of(self.name)

    def record(self) -> None:
        """Keep the profile, whole, beside the results that are made with it, which are its own from now on."""
        if self.stated_in is not None:
            ownership.claim(self.stated_in)
        overrides.keep(self.profile, self.folder, f"The profile '{self.name}' as it was when the results beside it "
                                                  "were written.")

    # --- what is studied

    @property
    def trait(self) -> Trait:
        """The trait whose generalisation is studied."""
        return self.recipes.trait.value

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """What runs are trained on: narrow data sets, benign tasks, reinforcement learning."""
        return tasks_of(self.recipes)

    def task(self, run: Run) -> Task:
        """The run's task; a narrow data set may be one that the profile does not list, as a scorer's."""
        return self.tasks.get(run.task) or NarrowTask(run.task, self.recipes)

    def benign(self, run: Run) -> BenignTaskRuns:
        """The run's benign task."""
        task = self.task(run)
        assert isinstance(task, BenignTaskRuns), f"{run} is no run of a benign task"
        return task

    def data(self, dataset: str) -> NarrowData:
        """The aligned and the misaligned rows of a narrow data set, split."""
        return self.recipes.data(dataset)

    def runs(self, section: Section = "narrow", *, methods: Iterable[str] | None = None,
             datasets: Iterable[str] | None = None, settings: Iterable[float] | None = None,
             seeds: Iterable[int] | None = None) -> list[Run]:
        """The profile's runs of one section, or the slice of them that is asked for (None: all).

        Args:
            section: fine-tuning on narrow data sets, on benign tasks, or reinforcement learning.
            methods, datasets, settings, seeds: names and numbers that the profile has; a data set is a task's name.

        Raises:
            ProfileError: something is asked for that the profile does not have.
        """
        every = [run for task in self.tasks.values() if task.section == section for run in task.runs()]

        def there(values: Iterable[Any]) -> list[Any]:
            return list(dict.fromkeys(values))

        names = sliced("data set" if section == "narrow" else "task", datasets, there(run.task for run in every))
        wanted = sliced("method", methods, there(run.method for run in every))
        swept = sliced("setting", settings, sorted({run.setting for run in every if run.setting is not None}))
        drawn = sliced("seed", seeds, there(run.seed for run in every))
        return [run for name in names for run in every
                if run.task == name and run.method in wanted and run.seed in drawn
                and (run.setting is None or run.setting in swept)]

    def every_run(self) -> list[Run]:
        """The runs of all sections."""
        return [run for section in SECTIONS for run in self.runs(section)]

    def defended_by(self, kind: str) -> list[str]:
        """The methods on narrow data sets with a defense of that kind."""
        return [method.name for method in self.profile.methods if kind in {d.kind for d in method.defenses}]

    def baselines(self) -> list[str]:
        """Those of the three conditions without a defense that the profile runs (Table 2)."""
        return [method.name for method in self.profile.methods if method.name in BASELINES]

    def defenses(self, run: Run) -> tuple[Any, ...]:
        """What protects the run's training, with the hyperparameter value set."""
        return self.task(run).defenses(run)

    def training(self, run: Run) -> TrainingSpec | None:
        """What the run is fine-tuned on; None where it is not."""
        task = self.task(run)
        return task.training(run) if isinstance(task, NarrowTask | BenignTaskRuns) else None

    def own_steps(self, run: Run) -> list[Step]:
        """The steps that a run ends in: its adapter, its answers, and what is said of them."""
        task = self.task(run)
        adapter = task.adapter(run)
        return [*([] if adapter is None else [adapter]), *task.answers(run).values(), *task.evaluation(run).values()]

    def questions(self, run: Run, which: str) -> list[Question]:
        """The questions of one set that the run is asked."""
        return self.task(run).answers(run)[which].evaluation.questions.all

    def samples(self, run: Run, which: str) -> int:
        """How many answers are asked for each of them."""
        return self.task(run).answers(run)[which].evaluation.samples

    # --- what is there

    def run_key(self, run: Run) -> str:
        """One key for all that a run is made of."""
        return key_of("run", {name: step.identity for name, step in self.task(run).evaluation(run).items()})

    def found(self, step: Step | None) -> Artefact | None:
        """A step's artefact, if it is there."""
        return None if step is None else self.store.find(step)

    def adapter(self, run: Run) -> Artefact | None:
        """The run's trained adapter, if it is there."""
        return self.found(self.task(run).adapter(run))

    def log(self, run: Run) -> list[StepRecord]:
        """The run's supervised training, step by step; empty where there was none."""
        adapter = self.adapter(run)
        return [] if adapter is None else read_log(adapter.folder)

    def grpo_log(self, run: Run) -> list[RlStep]:
        """The RL steps of a run of reinforcement learning; empty where nothing was trained."""
        adapter = self.adapter(run)
        return [] if adapter is None else read_steps(adapter.folder)

    def completions(self, run: Run) -> list[Completion]:
        """The completions that were kept while a run of reinforcement learning trained."""
        adapter = self.adapter(run)
        return [] if adapter is None else read_records(adapter.file(COMPLETIONS), Completion)

    def answers(self, run: Run, which: str) -> list[Answer] | None:
        """The run's answers to one set of questions, if they are there."""
        found = self.found(self.task(run).answers(run)[which])
        return None if found is None else read_records(found.file("answers.jsonl"), Answer)

    def verdicts(self, run: Run, which: str) -> list[Verdict] | None:
        """The verdicts on a narrow run's answers, if they are there."""
        found = self.found(self.task(run).evaluation(run)[which])
        return None if found is None else read_records(found.file("verdicts.jsonl"), Verdict)

    def vectors(self) -> Artefact | None:
        """The trait's persona vectors, if they were taken."""
        return self.found(self.recipes.vector())

    def opinions(self, run: Run) -> Opinions | None:
        """Both judges' verdicts on the general answers that both were given, if they are there."""
        step = self.recipes.second_verdicts(self.task(run).answers(run)["general"])
        first, found = self.verdicts(run, "general"), self.found(step)
        if first is None or found is None:
            return None
        return Opinions(run, tuple(step.chosen(first)),
                        tuple(read_records(found.file("verdicts.jsonl"), Verdict)))

    def projected(self, run: Run) -> list[Projected] | None:
        """The projections of the run's general answers onto the persona vector, if they are there."""
        found = self.found(self.recipes.projections(self.task(run).answers(run)["general"]))
        return None if found is None else read_records(found.file("projections.jsonl"), Projected)

    def choices(self, run: Run, source: str) -> list[Choice] | None:
        """What the run's model made of a source's multiple-choice questions, if it was asked."""
        found = self.found(self.recipes.choices(self.task(run).adapter(run), source))
        return None if found is None else read_records(found.file("choices.jsonl"), Choice)

    def held_out(self, run: Run) -> list[float] | None:
        """The NLL of each held-out answer under the run's model, in nats a token (equation 4), if it was computed."""
        found = self.found(self.recipes.held_out(run.task, self.task(run).adapter(run)))
        return None if found is None else list(found.facts["nll"])

    # --- what is made

    def session(self) -> Session:
        """A session that makes what this study lacks; it loads the model library."""
        from emlib.make.session import Session

        return Session(self.recipes, self.store, self.folder, self.budget)

    def complete(self, runs: Sequence[Run]) -> list[RunResult]:
        """Make whatever these runs lack, and say what came out. What is there is not made again.

        Raises:
            JudgeWaits: a judge's batches are not back yet. Everything else was made.
        """
        self._make(runs, {run: self.task(run).evaluation(run).values() for run in runs if self.result(run) is None})
        if runs:
            self.write_results()
        return [result for run in runs if (result := self.result(run)) is not None]

    def complete_measures(self, runs: Sequence[Run]) -> None:
        """Make whatever auxiliary measures of the profile these runs lack, and what they are measures of."""
        self._make(runs, {run: [*self.task(run).evaluation(run).values(), *self.measures(run)] for run in runs})

    def measures(self, run: Run) -> list[Step]:
        """The auxiliary measures that the profile asks for: a second judge, projections, multiple choice."""
        evaluation, recipes = self.profile.evaluation, self.recipes
        answers, adapter = self.task(run).answers(run)["general"], self.task(run).adapter(run)
        return [*([recipes.second_verdicts(answers)] if self.profile.second_judge is not None else []),
                *([recipes.projections(answers)] if evaluation.projection_layer is not None else []),
                *(recipes.choices(adapter, source) for source in evaluation.choices)]

    def complete_held_out(self, runs: Sequence[Run]) -> None:
        """Compute the losses on held-out rows that these runs lack."""
        self._make(runs, {run: [self.recipes.held_out(run.task, self.task(run).adapter(run))] for run in runs})

    def steering_sweep(self) -> list[SteeredAnswers]:
        """Answers under the persona vector at inference, layer by layer, made where they are missing."""
        tried = {(layer, strength): self.recipes.steered(layer, strength)
                 for layer in self.profile.probe.layers for strength in self.profile.probe.strengths}
        missing = [step for step in (self.recipes.vector(), *tried.values()) if self.found(step) is None]
        if missing:
            with self.session() as session:
                for step in missing:
                    session.need(step)
        return [SteeredAnswers(layer, strength, *(
                    read_records(_there(self.found(step)).file(f"{name}.jsonl"), kind)
                    for name, kind in (("answers", Answer), ("verdicts", Verdict))))
                for (layer, strength), step in tried.items()]

    def select(self, runs: Sequence[Run]) -> None:
        """Put the pool's rows in the order in which these runs take them: score them first, where that is wanted."""
        adapters = [adapter for run in runs if (adapter := self.task(run).adapter(run)) is not None]
        steps = [rows.selection for adapter in adapters for rows in adapter.inputs if isinstance(rows, AddedRows)]
        missing = [step for step in steps if self.found(step) is None]
        if missing:
            with self.session() as session:
                for step in missing:
                    session.need(step)

    def _make(self, runs: Sequence[Run], wanted: dict[Run, Iterable[Step]]) -> None:
        """Make the steps that are missing of those wanted."""
        missing = {run: lacking for run, steps in wanted.items()
                   if (lacking := tuple(step for step in steps if self.found(step) is None))}
        if not missing:
            return
        from emlib.make.execute import Goal, complete  # loads torch and the model

        with self.session() as session:
            waiting = complete(session, [Goal(str(run), steps) for run, steps in missing.items()])
        if waiting:
            raise JudgeWaits(f"{len(waiting)} of {len(runs)} runs wait for their judge. {waiting[0]}")

    # --- what came out

    def result(self, run: Run, of: Denominator = "asked") -> RunResult | None:
        """What came out of a run, in shares of the answers asked for or scored; None where it is not finished."""
        task = self.task(run)
        scores = task.scores(run, self.found, of)
        if scores is None:
            return None
        adapter = self.adapter(run)
        seconds, tokens = (adapter.facts["seconds"], adapter.facts["tokens"]) if adapter else (0.0, 0)
        return RunResult(run, scores, seconds, tokens, self.run_key(run))

    def results(self, of: Denominator = "asked", section: Section = "narrow") -> list[RunResult]:
        """All finished runs of a section, in the profile's order; shares are of the answers asked for, or scored.

        Raises:
            StoreError: there are such runs, and none is finished.
        """
        runs = self.runs(section)
        found = [result for run in runs if (result := self.result(run, of)) is not None]
        if runs and not found:
            raise StoreError(f"No run of profile '{self.name}' is finished in the section '{section}'. Run its "
                             f"notebook first, or `make reproduce PROFILE={self.name}`.")
        return found

    def write_results(self) -> list[Path]:
        """Write `results.csv`, `benign.csv` and `grpo.csv`: a row a finished run, and no file without one."""
        self.record()
        return results.write(self)


def open_study(profile: str) -> Study:
    """The study of a profile: the name of a file in `params/`, or the path of a YAML file.

    Raises:
        ProfileError: the profile is not sound, or its results would be filed among those of another profile.
    """
    loaded = load_profile(profile)
    ownership.refuse_others(profile)
    return Study(paths.study_name(profile), loaded, Store(paths.runs() / "store"), profile)


def _there(artefact: Artefact | None) -> Artefact:
    assert artefact is not None, "it was just made"
    return artefact
