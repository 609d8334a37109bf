"""The plan of a study: every run of its profile, every step that several runs share, and which of them are done.

A run is done if it is in the results (`results.csv`, `benign.csv`, `grpo.csv`) and these were made with the profile as
it is now. Of other runs the store is asked for each step by its key: after an edit, and in a profile that extends
another, most of them are there. A key needs the data sets that it is a digest of, and a plan downloads none: where one
is not on this machine, and the store has artefacts of that kind, nobody knows, and the run counts as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from emlib.core.errors import DataError, SourceError
from emlib.core.step import Step, Work, closure, total
from emlib.data.download import nothing_downloaded
from emlib.data.sizes import Sizes
from emlib.steps.adapter import Adapter, KeptAdapter
from emlib.steps.pool import PoolLosses
from emlib.steps.vectors import PersonaVectors
from emlib.store.artefacts import Store
from emlib.study import audit, results, stamps
from emlib.study.runs import SECTIONS, Run
from emlib.study.study import Study
from emlib.study.tasks import NarrowTask


@dataclass(frozen=True)
class PlannedRun:
    """A run, the work of the steps that it alone needs, how much of it is left, and the shared steps that it needs.

    It is done if nothing is left to make for it. `known` is False where the store could not be asked for a step.
    """

    run: Run
    work: Work
    left: Work
    uses: tuple[str, ...] = ()
    done: bool = False
    known: bool = True


@dataclass(frozen=True)
class Shared:
    """Steps with one title that are made once for several runs, and how much of their work is left."""

    title: str
    work: Work
    left: Work
    runs: int


@dataclass(frozen=True)
class Plan:
    """Every run of a profile, and every shared step once. `assumed` names the data whose size was not counted."""

    runs: tuple[PlannedRun, ...]
    shared: tuple[Shared, ...]
    assumed: tuple[str, ...]

    @property
    def works(self) -> list[Work]:
        """All work, without counting a shared step twice."""
        return [*(planned.work for planned in self.runs), *(one.work for one in self.shared)]

    @property
    def left(self) -> list[Work]:
        """All work that is not done yet, without counting a shared step twice."""
        return [*(planned.left for planned in self.runs), *(one.left for one in self.shared)]


class _Lacking:
    """What a store lacks of the steps of a plan. Each step is asked for once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.unknown: set[Step] = set()  # steps whose keys are digests of data that are not on this machine
        self._there: dict[Step, bool] = {}
        self._stages = {stage for stage, _ in store.entries()}

    def of(self, goals: Iterable[Step]) -> list[Step]:
        """Return the steps that have to be made for these goals: those that are missing, and what these need."""
        found: dict[Step, None] = {}
        waiting = list(goals)
        while waiting:
            step = waiting.pop()
            if step not in found and not self._has(step):
                found[step] = None
                waiting += [*step.inputs, *_read_by_monitor(step)]
                if isinstance(step, KeptAdapter):
                    waiting += step.adapter.inputs  # if it is trained again
        return list(found)

    def cost(self, step: Step, sizes: Sizes) -> Work:
        """Return the work of making a missing step.

        If an adapter is there, and some that were to be kept of it are missing, the last one of these takes training up
        to there, which keeps the others.
        """
        if isinstance(step, KeptAdapter) and self._has(step.adapter) and all(map(self._has, step.later)):
            return step.cost(sizes) + step.again(sizes)
        return step.cost(sizes)

    def _has(self, step: Step) -> bool:
        if step.stage not in self._stages:
            return False  # without a key, which may need data that are not on this machine
        if step not in self._there:
            try:
                key = step.key  # here, so that only a key's errors are caught
            except (SourceError, DataError):
                self.unknown.add(step)
                self._there[step] = False
            else:
                self._there[step] = self.store.at(step.stage, key) is not None
        return self._there[step]


@nothing_downloaded()
def plan(study: Study) -> Plan:
    """Plan all work of a study. Nothing is downloaded for it.

    Raises:
        EmlibError: a file that is read for its size cannot be used, or a trait has too few questions for its vectors.
    """
    planning = _Planning(study)
    planning.refuse_few_pairs()
    runs, shared = tuple(map(planning.planned, planning.goals)), planning.shared()
    return Plan(runs, shared, tuple(sorted(planning.sizes.assumed)))


class _Planning:
    """The steps of every run of a study; a step that is made for one run alone is counted with it, others once."""

    def __init__(self, study: Study) -> None:
        self.study, self.sizes, self.lacking = study, Sizes(), _Lacking(study.store)
        self.done = finished(study)
        self.goals = {run: list(dict.fromkeys(study.own_steps(run))) for run in study.every_run()}
        self.owners = Counter(step for steps in self.goals.values() for step in steps)
        self.left = {run: [] if run in self.done else self.lacking.of(study.wanted_steps(run)) for run in self.goals}
        self.counted = _counted_in(self.left, {step: run for run, steps in self.goals.items() for step in steps
                                               if self._is_of_one(step)})
        self.pieces = {run: list(self._shared_by(run)) for run in self.goals}
        self.works = _longest(piece for pieces in self.pieces.values() for piece in pieces)
        self.of_notebooks = _of_notebooks(study, tuple(self.works))

    def planned(self, run: Run) -> PlannedRun:
        """Return a run with the work that is counted with it."""
        left = self.left[run]
        return PlannedRun(
            run, work=total(step.cost(self.sizes) for step in self.goals[run] if self._is_of_one(step)),
            left=total(self.lacking.cost(step, self.sizes) for step in left if self.counted.get(step) == run),
            uses=tuple(dict.fromkeys(title for title, _ in self.pieces[run])),
            done=not left, known=self.lacking.unknown.isdisjoint(left))

    def shared(self) -> tuple[Shared, ...]:
        """Return the work that is not counted with a run, by its title: that of shared steps and of notebooks."""
        works, left = dict(self.works), self._left_of_shared()
        for step in self.of_notebooks:
            works[step.title] = works.get(step.title, Work()) + step.cost(self.sizes)
            if set(self.goals) - self.done and step in self.lacking.of([step]):
                left[step.title] = left.get(step.title, Work()) + step.cost(self.sizes)
        users = Counter(title for pieces in self.pieces.values() for title in dict(pieces))
        return tuple(Shared(title, work, left.get(title, Work()), users[title]) for title, work in works.items())

    def refuse_few_pairs(self) -> None:
        """Refuse persona vectors of which it is known before any answer that they are of too few pairs."""
        for step in _with_monitored([*self.owners, *self.of_notebooks]):
            if isinstance(step, PersonaVectors):
                step.refuse_few_asked()

    def _is_of_one(self, step: Step) -> bool:
        """Whether one run alone makes this step; an input of steps may be of none."""
        return self.owners[step] == 1

    def _shared_by(self, run: Run) -> Iterator[tuple[str, Work]]:
        """Yield the work of the shared steps that a run needs."""
        for step in _with_monitored(self.goals[run]):
            if not self._is_of_one(step):
                yield from _pieces(step, step.cost(self.sizes), self.sizes)

    def _left_of_shared(self) -> dict[str, Work]:
        """Return the work of the shared steps that are missing."""
        missing = [step for steps in self.left.values() for step in steps if not self._is_of_one(step)]
        return _longest(piece for step in missing
                        for piece in _pieces(step, self.lacking.cost(step, self.sizes), self.sizes))


def _counted_in(left: Mapping[Run, Sequence[Step]], owner: Mapping[Step, Run]) -> dict[Step, Run]:
    """Return the run in which each missing step of a single owner is counted, however many other runs need it.

    That is its owner; or, if the owner is done and the step was removed, the first run that needs it.
    """
    first = {step: run for run, steps in reversed(list(left.items())) for step in steps if step in owner}
    missing = {run: set(steps) for run, steps in left.items()}
    return {step: owner[step] if step in missing[owner[step]] else run for step, run in first.items()}


def _longest(pieces: Iterable[tuple[str, Work]]) -> dict[str, Work]:
    """Return the work by its title. Of two with one title, such as the model's own answers, the longer one counts."""
    works: dict[str, Work] = {}
    for title, work in pieces:
        works[title] = max(works.get(title, work), work, key=lambda one: one.write)
    return works


def _pieces(step: Step, work: Work, sizes: Sizes) -> Iterator[tuple[str, Work]]:
    """Yield the `work` of a shared step by its title, and that of the pool's losses by model."""
    if isinstance(step, PoolLosses):
        yield from step.cost_by_model(sizes).items()
    elif work != Work():
        yield f"adapter of {step.title}" if isinstance(step, Adapter) else step.title, work


def _with_monitored(steps: Sequence[Step]) -> Iterable[Step]:
    """Return the steps and all that they need, with what monitors read, which is no part of a training's key."""
    return closure([*steps, *(read for step in closure(steps) for read in _read_by_monitor(step))])


def _read_by_monitor(step: Step) -> list[Step]:
    """Return what the monitor of a training reads, if the step is one with a monitor."""
    return [step.spec.monitor.inputs] if isinstance(step, Adapter) and step.spec.monitor is not None else []


def _of_notebooks(study: Study, planned: Sequence[str]) -> list[Step]:
    """Return the steps that single notebooks need, without those whose titles are planned already.

    These are the steering sweep of notebook 03, the persona vectors that notebook 02 projects answers onto, and the
    audits of notebook 21.
    """
    audits = [] if study.profile.audit is None else audit.needed(study, audit.audited_runs(study, study.runs()))
    projected = study.profile.evaluation.projection_layer is not None and bool(study.runs())
    vectors = [study.recipes.vector()] if projected or study.profile.audit is not None else []
    found = dict.fromkeys([*_steering_sweep(study), *vectors, *audits])
    return [step for step in found if step.title not in planned]


def _steering_sweep(study: Study) -> list[Step]:
    """Return the steering sweep of notebook 03, if runs on narrow data sets need persona vectors."""
    narrow = [study.task(run).adapter(run) for run in study.runs()]
    if not any(isinstance(step, PersonaVectors) for step in closure(step for step in narrow if step is not None)):
        return []
    probe = study.profile.probe
    return [study.recipes.steered(layer, strength) for layer in probe.layers for strength in probe.strengths]


def finished(study: Study) -> frozenset[Run]:
    """Return the runs in the study's results, if these were made with the profile as it is now.

    A run with triggers, a trajectory or attacks must also be in the table of these, which notebooks 11 and 20 write.
    """
    triggers, trajectory, persistence = (
        _in_table(study, name) for name in ("triggers", "trajectory", "persistence"))

    def in_tables(run: Run) -> bool:
        task = study.task(run)
        return not isinstance(task, NarrowTask) or ((run in triggers or not task.triggered(run))
                                                    and (run in trajectory or not task.trajectory(run))
                                                    and (run in persistence or not task.attacks(run)))

    found = {run for section in SECTIONS for run, _ in results.read(study.folder, study.profile, section)}
    return frozenset(filter(in_tables, found))


def _in_table(study: Study, name: str) -> frozenset[Run]:
    """Return the narrow runs in a table of the study; empty if there is none that was made with its profile."""
    path = study.folder / "tables" / f"{name}.csv"
    stamp = stamps.of_file(path.with_suffix(".tex"))
    if not path.is_file() or stamp != stamps.stamp_of(study.profile, study.name):
        return frozenset()
    return frozenset(Run(study.profile.model.name, row["dataset"], row["method"],
                         None if pd.isna(row["setting"]) else row["setting"], row["seed"])
                     for row in results.read_table(path).to_dict("records"))
