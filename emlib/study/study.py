"""A study: the runs of a profile, their steps, and their results.

A run is one (model, task, method, setting, seed). Its task defines the steps that it needs, and the store has their
artefacts. `emlib.make` makes missing artefacts. It is imported only then, so that a finished study opens at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emlib.config import BASELINES, NO_TRIGGER, Profile, Trait, load_profile
from emlib.core import paths
from emlib.core.digests import key_of
from emlib.core.errors import JudgeWaits, StoreError
from emlib.core.files import read_appended, read_records
from emlib.core.progress import say
from emlib.core.records import Answer, Question, Verdict, as_judged
from emlib.core.step import Step, closure
from emlib.data.domains import NarrowData
from emlib.data.triggers import without_trigger
from emlib.evaluation.panel import PanelTask
from emlib.evaluation.rates import Denominator
from emlib.evaluation.records import MONITOR, READINGS, AnswerProjection, Choice, Reading
from emlib.steps.adapter import Adapter
from emlib.steps.answers import Answers, Verdicts
from emlib.steps.inputs import Inputs
from emlib.steps.recipes import Recipes
from emlib.steps.specs import TrainingSpec
from emlib.steps.vectors import PersonaVectors
from emlib.store.artefacts import Artefact, Store, open_store
from emlib.study import overrides, ownership, precision, results, stamps
from emlib.study.runs import SECTIONS, Opinions, Run, RunResult, Section, SteeringPoint, TrajectoryPoint
from emlib.study.tasks import BenignTask, NarrowTask, Points, Task, sliced, tasks_of
from emlib.training.records import LOG, StepRecord
from emlib.training.rl.records import COMPLETIONS, STEPS, Completion, RlStep

if TYPE_CHECKING:
    from emlib.make.session import Session

NOTEBOOKS: dict[Section, str] = {"narrow": "02_baselines", "benign": "12_benign_tasks", "grpo": "13_grpo"}


class Study:
    """The runs of one profile, with their artefacts in one store.

    A method that reads the store returns None where something that it needs is not made yet.
    """

    def __init__(self, name: str, profile: Profile, store: Store, stated_in: str | None = None, *,
                 auto_dtype: bool = False) -> None:
        """Take the profile, its name (that of its folder of results), and its file or its name in `params/`, if any.

        `auto_dtype`: whether the profile says `dtype: auto`, which is resolved here.
        """
        self.name, self.store, self.stated_in, self.auto_dtype = name, store, stated_in, auto_dtype
        self.recipes = Recipes(profile, name)

    @property
    def profile(self) -> Profile:
        """The profile. A study of another profile is another study."""
        return self.recipes.profile

    @property
    def inputs(self) -> Inputs:
        """What the profile names: its trait, data sets, questions and problems."""
        return self.recipes.inputs

    # --- paths

    @property
    def folder(self) -> Path:
        """The folder of this profile's results, tables, figures and executed notebooks."""
        return paths.runs() / self.name

    @property
    def command(self) -> str:
        """The command that runs the study, for messages: of a profile outside `params/` with its path."""
        stated = self.stated_in or self.name
        profile = str(Path(stated).absolute()) if paths.is_yaml(stated) else stated
        return f"make reproduce PROFILE={shlex.quote(profile)}"

    @property
    def budget(self) -> str:
        """The name of the budget for paid judges, which a profile shares with its studies with overrides."""
        return ownership.base_of(self.name)

    def record(self) -> None:
        """Write the whole profile into the folder of results, and claim the folder for it.

        If it was edited since its results were written, these are removed: `write_results` writes them anew.
        """
        if self.stated_in is not None:
            ownership.claim(self.stated_in)
        precision.record(self.profile, self.name, auto=self.auto_dtype)
        stamps.opened(self.profile, self.folder)
        overrides.keep(self.profile, self.folder, f"The profile '{self.name}' when the results in this folder were "
                                                  "written.")

    # --- trait, data and runs

    @property
    def trait(self) -> Trait:
        """The trait whose generalisation is studied."""
        return self.inputs.trait.value

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks that runs are trained on, by name: narrow data sets, benign tasks, reinforcement learning."""
        return tasks_of(self.recipes)

    def task(self, run: Run) -> Task:
        """Return the run's task. It may be a narrow data set that the profile does not list, such as a scorer's."""
        return self.tasks.get(run.task) or NarrowTask(run.task, self.recipes)

    def narrow(self, run: Run) -> NarrowTask:
        """Return the run's narrow data set."""
        task = self.task(run)
        assert isinstance(task, NarrowTask), f"{run} is not a run on narrow data"
        return task

    def benign(self, run: Run) -> BenignTask:
        """Return the run's benign task."""
        task = self.task(run)
        assert isinstance(task, BenignTask), f"{run} is not a run of a benign task"
        return task

    def data(self, dataset: str) -> NarrowData:
        """Return the aligned and the misaligned rows of a narrow data set, split into training and held-out rows."""
        return self.inputs.data(dataset)

    def runs(self, section: Section = "narrow", *, methods: Iterable[str] | None = None,
             datasets: Iterable[str] | None = None, settings: Iterable[float] | None = None,
             seeds: Iterable[int] | None = None) -> list[Run]:
        """Return the profile's runs of one section, or some of them.

        Args:
            section: fine-tuning on narrow data sets (`narrow`), on benign tasks, or reinforcement learning.
            methods, datasets, settings, seeds: values of the profile to select runs by, or None for all. The data sets
                of other sections are the names of their tasks.

        Raises:
            ProfileError: the profile does not have one of these values.
        """
        every = [run for task in self.tasks.values() if task.section == section for run in task.runs()]
        names = sliced("data set" if section == "narrow" else "task", datasets, (run.task for run in every))
        wanted = sliced("method", methods, (run.method for run in every))
        swept = sliced("setting", settings, sorted({run.setting for run in every if run.setting is not None}))
        wanted_seeds = sliced("seed", seeds, (run.seed for run in every))
        return [run for name in names for run in every
                if run.task == name and run.method in wanted and run.seed in wanted_seeds
                and (run.setting is None or run.setting in swept)]

    def every_run(self) -> list[Run]:
        """Return the runs of all sections."""
        return [run for section in SECTIONS for run in self.runs(section)]

    def defended_by(self, *kinds: str) -> list[str]:
        """Return the methods on narrow data sets that have a defense of one of these kinds."""
        return [method.name for method in self.profile.methods if {d.kind for d in method.defenses} & set(kinds)]

    def defended_otherwise_than_by(self, *kinds: str) -> list[str]:
        """Return the methods on narrow data sets that have a defense of another kind, such as that of a plugin."""
        return [method.name for method in self.profile.methods if {d.kind for d in method.defenses} - set(kinds)]

    def baselines(self) -> list[str]:
        """Return those of the three conditions without a defense that the profile runs (Table 2)."""
        return [method.name for method in self.profile.methods if method.name in BASELINES]

    def defenses(self, run: Run) -> tuple[Any, ...]:
        """Return the run's defenses, with the run's hyperparameter value."""
        return self.task(run).defenses(run)

    def training(self, run: Run) -> TrainingSpec | None:
        """Return the specification of the run's fine-tuning; None if it is not fine-tuned."""
        return self.task(run).training(run)

    def own_steps(self, run: Run) -> list[Step]:
        """Return the steps that a run ends in: its adapter, its answers, and their verdicts or rewards.

        With those under triggers, along its trajectory, and along attacks on it.
        """
        task = self.task(run)
        adapter = task.adapter(run)
        found = [*([] if adapter is None else [adapter]), *task.answers(run).values(), *task.evaluation(run).values()]
        further = [*task.conditions(run), *task.after_attacks(run)]
        return [*found, *(part for step in further for part in (*step.answers.inputs, step.answers, step))]

    def wanted_steps(self, run: Run) -> list[Step]:
        """Return the steps of a run that its study reads. What these need is made for them alone."""
        task = self.task(run)
        return [*task.scored(run), *task.conditions(run), *task.after_attacks(run)]

    def questions(self, run: Run, which: str) -> list[Question]:
        """Return the questions of the set `which` that the run is asked."""
        return self.task(run).answers(run)[which].evaluation.questions.all

    def samples(self, run: Run, which: str) -> int:
        """Return the number of answers that are sampled for each question of the set `which`."""
        return self.task(run).answers(run)[which].evaluation.samples

    # --- reading the store

    def run_key(self, run: Run) -> str:
        """Return a key that identifies all steps of a run."""
        return key_of("run", {name: step.key for name, step in self.task(run).evaluation(run).items()})

    def found(self, step: Step | None) -> Artefact | None:
        """Return a step's artefact."""
        return None if step is None else self.store.find(step)

    def read(self, step: Step | None) -> list[Any] | None:
        """Return the records of a step's artefact."""
        found = self.found(step)
        return None if step is None or found is None else found.records(step)

    def adapter(self, run: Run) -> Artefact | None:
        """Return the run's trained adapter; None if it is not in the store."""
        return self.found(self.task(run).adapter(run))

    def log(self, run: Run) -> list[StepRecord]:
        """Return the log of the run's supervised steps; empty if there were none."""
        return self._recorded(run, LOG, StepRecord)

    def readings(self, run: Run) -> list[Reading]:
        """Return what the profile's monitor read while the run trained; empty if it was trained without it.

        Adapters are shared by studies, whose monitors may read other rows, answers or layers.
        """
        step, made = self.task(run).adapter(run), self.adapter(run)
        found = self._recorded(run, READINGS, Reading)
        if not found or made is None or not isinstance(step, Adapter) or step.spec.monitor is None:
            return []
        if made.facts.get(MONITOR) != step.spec.monitor.inputs.key:
            say(f"{run}: its monitor's readings are left out. It was trained with another section 'monitor', or its "
                "adapter does not say with which. Its results are the same.")
            return []
        return found

    def grpo_log(self, run: Run) -> list[RlStep]:
        """Return the log of a GRPO run's RL steps; empty if nothing was trained."""
        return self._recorded(run, STEPS, RlStep)

    def completions(self, run: Run) -> list[Completion]:
        """Return the completions that were saved while a GRPO run trained."""
        return self._recorded(run, COMPLETIONS, Completion)

    def _recorded(self, run: Run, name: str, kind: type) -> list[Any]:
        """Return the records in a file of the run's adapter; empty if it has no such file."""
        adapter = self.adapter(run)
        return read_appended(adapter.file(name), kind) if adapter is not None and adapter.has(name) else []

    def answers(self, run: Run, which: str) -> list[Answer] | None:
        """Return the run's answers to the question set `which`; None if they are not in the store."""
        return self.read(self.task(run).answers(run)[which])

    def verdicts(self, run: Run, which: str) -> list[Verdict] | None:
        """Return the verdicts on a narrow run's answers; None also for a set that has only metrics of its own."""
        return self.read(self.narrow(run).verdicts(run).get(which))

    def triggered(self, run: Run) -> dict[str, list[Verdict]] | None:
        """Return a narrow run's verdicts under each trigger, after those of `NO_TRIGGER` on the same questions."""
        found = self._read_all(self.narrow(run).triggered(run))
        general = self.verdicts(run, "general")
        if not found or general is None:
            return None
        return {NO_TRIGGER: without_trigger(general, next(iter(found.values())))} | found

    def trajectory(self, run: Run) -> list[TrajectoryPoint] | None:
        """Return a narrow run's verdicts along its training; None also if no adapter of it is kept on the way."""
        return self._points(run, self.narrow(run).trajectory(run)) or None

    def attacked(self, run: Run) -> dict[str, list[TrajectoryPoint]] | None:
        """Return a narrow run's verdicts along further training of its adapter, by attack; None also without one."""
        along = {attack: self._points(run, points) for attack, points in self.narrow(run).attacks(run).items()}
        found = {attack: points for attack, points in along.items() if points is not None}
        return found if found and len(found) == len(along) else None

    def _points(self, run: Run, along: Points) -> list[TrajectoryPoint] | None:
        """Read the verdicts along a training, once for each step; None also if the number of steps is unknown.

        Shares that are nearest to one step have one adapter, and so have those after an early end. The last one stays:
        it may be the run itself.
        """
        points: dict[int, TrajectoryPoint] = {}
        for share, steps in along.items():
            found = self._read_all(steps)
            if found is None:
                return None
            taken = 0 if share == 0 else self._steps_before(next(iter(steps.values())).answers)
            if taken is None:
                say(f"{run}: left out along its steps, because an adapter was removed and nothing else states their "
                    "number. To evaluate again: `make clean WHAT=\"answers verdicts\"`, then `make reproduce`.")
                return None
            points[taken] = TrajectoryPoint(share, taken, found)
        return list(points.values())

    def _read_all(self, steps: Mapping[str, Verdicts]) -> dict[str, list[Verdict]] | None:
        """Read all of these verdicts, by the same names."""
        found = {name: verdicts for name, step in steps.items() if (verdicts := self.read(step)) is not None}
        return found if len(found) == len(steps) else None

    def _steps_before(self, answers: Answers) -> int | None:
        """Return the number of training steps before these answers; None if neither adapter nor answers state it."""
        adapter, sampled = self.found(answers.adapter), self.found(answers)
        if adapter is not None:
            return adapter.facts["steps"]
        return None if sampled is None else sampled.facts.get("adapter_steps")

    def vectors(self) -> Artefact | None:
        """Return the trait's persona vectors; None if they are not in the store."""
        return self.found(self.recipes.vector())

    def opinions(self, run: Run) -> Opinions | None:
        """Return two judges' verdicts on the same general answers."""
        step = self.recipes.second_verdicts(self.task(run).answers(run)["general"])
        first, second = self.verdicts(run, "general"), self.read(step)
        if first is None or second is None:
            return None
        return Opinions(run, tuple(step.chosen(first)), tuple(second))

    def projected(self, run: Run) -> list[AnswerProjection] | None:
        """Return the projections of the run's general answers onto the persona vector; None if not in the store."""
        return self.read(self.recipes.projections(self.task(run).answers(run)["general"]))

    def choices(self, run: Run, source: str) -> list[Choice] | None:
        """Return the run's choices in a source's multiple-choice questions; None if they are not in the store."""
        return self.read(self.recipes.choices(self.task(run).adapter(run), source))

    def held_out(self, run: Run) -> list[float] | None:
        """Return the NLL of each held-out answer under the run's model, in nats per token (equation 4)."""
        found = self.found(self.recipes.held_out(run.task, self.task(run).adapter(run)))
        return None if found is None else list(found.facts["nll"])

    # --- making what is missing

    def session(self) -> Session:
        """Open a session that makes missing artefacts, and close what was open. This imports the model library."""
        from emlib.make.session import Session

        Session.close_kept()
        precision.record(self.profile, self.name, auto=self.auto_dtype)
        return Session(self.recipes, self.store, self.folder, self.budget)

    def complete(self, runs: Sequence[Run]) -> list[RunResult]:
        """Make all missing artefacts of these runs, and return the results of those that are finished.

        Raises:
            EmlibError: persona vectors in the store are of fewer pairs than the profile's `min_pairs`.
            JudgeWaits: a judge's batches are not back yet. Everything else was made.
        """
        for step in closure(adapter for run in runs if (adapter := self.task(run).adapter(run)) is not None):
            if isinstance(step, PersonaVectors) and (found := self.found(step)) is not None:
                step.check(found.facts)
        self._make({run: self.task(run).scored(run) for run in runs})
        if runs:
            self.write_results()
        return [result for run in runs if (result := self.result(run)) is not None]

    def complete_measures(self, runs: Sequence[Run]) -> None:
        """Make the missing auxiliary measures of these runs, and the answers and verdicts that they need."""
        self._make({run: [*self.task(run).evaluation(run).values(), *self.measures(run)] for run in runs})

    def complete_conditions(self, runs: Sequence[Run]) -> None:
        """Make the missing answers and verdicts of these runs under triggers and along their trajectories."""
        self._make_further({run: self.task(run).conditions(run) for run in runs})

    def complete_attacks(self, runs: Sequence[Run]) -> None:
        """Train the adapters of these runs further, as the section `persistence` says, and evaluate them on the way."""
        profile, section = self.profile, self.profile.persistence
        for remark in [] if section is None else section.remarks(
                profile.datasets, [method.name for method in profile.methods], pool=profile.pool is not None):
            say(remark)
        self._make_further({run: self.task(run).after_attacks(run) for run in runs})

    def _make_further(self, further: Mapping[Run, Sequence[Step]]) -> None:
        """Make the missing steps of an evaluation beyond a run's own, which is made as well."""
        for name in self.profile.absent:
            say(f"evaluation or persistence names the method '{name}', which this profile does not have.")
        self._make({run: [*self.task(run).evaluation(run).values(), *steps] for run, steps in further.items() if steps})
        self.write_results()  # the tables of these evaluations are of the profile that is recorded then

    def measures(self, run: Run) -> list[Step]:
        """Return the steps of the profile's auxiliary measures: a second judge, projections, multiple choice."""
        evaluation, recipes = self.profile.evaluation, self.recipes
        answers, adapter = self.task(run).answers(run)["general"], self.task(run).adapter(run)
        return [*([recipes.second_verdicts(answers)] if self.profile.second_judge is not None else []),
                *([recipes.projections(answers)] if evaluation.projection_layer is not None else []),
                *(recipes.choices(adapter, source) for source in evaluation.choices)]

    def panel(self, runs: Sequence[Run], tasks: Sequence[PanelTask]) -> list[Step]:
        """Return the steps of these runs' results on standard benchmarks, each once."""
        return [*dict.fromkeys(self.recipes.panel(self.task(run).adapter(run), task) for run in runs for task in tasks)]

    def complete_held_out(self, runs: Sequence[Run]) -> None:
        """Compute the missing losses on held-out rows of these runs."""
        self._make({run: [self.recipes.held_out(run.task, self.task(run).adapter(run))] for run in runs})

    def steering_sweep(self) -> list[SteeringPoint]:
        """Return answers with the persona vector added at inference, by layer and strength. Make missing ones."""
        sweep = {(layer, strength): self.recipes.steered(layer, strength)
                 for layer in self.profile.probe.layers for strength in self.profile.probe.strengths}
        self.need([vectors := self.recipes.vector(), *sweep.values()])
        if (kept := self.found(vectors)) is not None:
            vectors.check(kept.facts)
        points = []
        for (layer, strength), step in sweep.items():
            made = self.found(step)
            assert made is not None, "it was made above"
            verdicts = read_records(made.file(step.verdicts.name), step.verdicts.kind)
            points.append(SteeringPoint(layer, strength, made.records(step), as_judged(
                verdicts, step.questions.all, coherence_judged=step.assessment.judge.judges_coherence)))
        return points

    def select(self, runs: Sequence[Run]) -> None:
        """Order the pool's rows for these runs, and score the rows first if the order needs it."""
        self.need([rows.selection for run in runs for rows in self.task(run).pool_rows(run)])

    def need(self, steps: Iterable[Step]) -> None:
        """Make the missing steps one after another."""
        missing = [step for step in steps if self.found(step) is None]
        if missing:
            with self.session() as session:
                for step in missing:
                    session.need(step)

    def _make(self, wanted: Mapping[Run, Sequence[Step]]) -> None:
        """Make the missing steps together, with the runs as goals. It raises the `JudgeWaits` of `complete`."""
        missing = {run: lacking for run, steps in wanted.items()
                   if (lacking := tuple(step for step in steps if self.found(step) is None))}
        if not missing:
            return
        from emlib.make.execute import Goal, complete  # loads torch and the model

        with self.session() as session:
            waiting = complete(session, [Goal(str(run), steps) for run, steps in missing.items()])
        if waiting:
            raise JudgeWaits(f"{len(waiting)} of {len(wanted)} runs wait for their judge. {waiting[0]}")

    # --- results

    def result(self, run: Run, of: Denominator = "asked") -> RunResult | None:
        """Return a run's result, in shares of the answers asked for or scored; None if the run is not finished."""
        task = self.task(run)
        scores = task.scores(run, self.found, of)
        if scores is None:
            return None
        trained, adapter = task.adapter(run) is not None, self.adapter(run)
        seconds, tokens = (None, None) if trained else (0.0, 0)
        if adapter is not None:
            seconds, tokens = adapter.facts["seconds"], adapter.facts["tokens"]
        return RunResult(run, scores, seconds, tokens, self.run_key(run))

    def finished(self, section: Section = "narrow", *, methods: Iterable[str] | None = None) -> list[RunResult]:
        """Return the results of all finished runs of a section, or of some of its methods, in the profile's order.

        Notebooks save tables and figures of these, whichever runs their parameters choose.
        """
        return [result for run in self.runs(section, methods=methods) if (result := self.result(run)) is not None]

    def results(self, of: Denominator = "asked", section: Section = "narrow") -> list[RunResult]:
        """Return the results of a section's finished runs, in the profile's order.

        Shares are of the answers asked for, or of those scored. Scores on benign tasks and in reinforcement learning
        are always of all.

        Raises:
            StoreError: the section has runs, and none is finished.
        """
        runs = self.runs(section)
        found = [result for run in runs if (result := self.result(run, of)) is not None]
        if runs and not found:
            raise StoreError(f"No run of profile '{self.name}' is finished. Run notebook {NOTEBOOKS[section]} first, "
                             f"or `{self.command}`.")
        return found

    def write_results(self) -> list[Path]:
        """Write `results.csv`, `benign.csv` and `grpo.csv`, each if it has a finished run. Return their paths.

        Files without a finished run, such as those of a profile that was edited since, are removed.
        """
        self.record()
        return results.write(self.folder, self.profile, {section: self.finished(section) for section in SECTIONS})


def open_study(profile: str, changes: str = "") -> Study:
    """Open the study of a profile, given by the name of a file in `params/` or by the path of a YAML file.

    `changes` overrides values as `SET=` does on the command line, such as `seeds=[0,1] training.epochs=2`: that is
    another study with a folder of its own, which shares the artefacts that are the same.

    Raises:
        ProfileError: the profile or a change is invalid, or the results would go into the folder of another profile.
        StoreError: the store has the format of another version of emlib.
    """
    store = open_store()
    profile = overrides.study_with(profile, changes) if changes.strip() else profile
    loaded = load_profile(profile)
    ownership.refuse_others(profile)
    name = paths.study_name(profile)
    study = Study(name, precision.resolved(loaded, name), store, profile, auto_dtype=loaded.model.dtype == "auto")
    stamps.opened(study.profile, study.folder)
    return study
