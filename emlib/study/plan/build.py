"""The plan of a study: every run of its profile, every step that several runs share, and which of them are done.

A run is done if it is in the results (`results.csv`, `benign.csv`, `grpo.csv`) and these were made with the profile as
it is now. The finished steps of an unfinished run are not subtracted, so that the work left is an upper bound. So a
plan computes no key, and needs no data set on this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from emlib.core.step import Step, Work, closure, total
from emlib.data.sizes import Sizes
from emlib.steps.adapter import Adapter
from emlib.steps.pool import PoolLosses
from emlib.steps.vectors import PersonaVectors
from emlib.study import audit, results, stamps
from emlib.study.runs import SECTIONS, Run
from emlib.study.study import Study
from emlib.study.tasks import NarrowTask


@dataclass(frozen=True)
class PlannedRun:
    """A run, the work of the steps that it alone needs, and the titles of the shared steps that it needs."""

    run: Run
    work: Work
    uses: tuple[str, ...] = ()
    done: bool = False


@dataclass(frozen=True)
class Shared:
    """Steps with one title that are made once for several runs. `left`: whether one of these runs is not done."""

    title: str
    work: Work
    runs: int
    left: bool


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
        return [*(planned.work for planned in self.runs if not planned.done),
                *(one.work for one in self.shared if one.left)]


def plan(study: Study) -> Plan:
    """Plan all work of a study."""
    sizes, done = Sizes(), finished(study)
    goals = {run: list(dict.fromkeys(study.own_steps(run))) for run in study.every_run()}
    owners = Counter(step for steps in goals.values() for step in steps)
    pieces = {run: [piece for step in closure([*steps, *_monitored(steps)]) if owners[step] != 1
                    for piece in _pieces(step, sizes)] for run, steps in goals.items()}
    runs = tuple(PlannedRun(run, total(step.cost(sizes) for step in steps if owners[step] == 1),
                            tuple(dict.fromkeys(title for title, _ in pieces[run])), run in done)
                 for run, steps in goals.items())
    works = _longest(piece for some in pieces.values() for piece in some) | _steering_sweep(study, sizes)
    works |= {step.title: step.cost(sizes) for step in _of_notebooks(study) if step.title not in works}
    return Plan(runs, tuple(_shared(title, work, runs) for title, work in works.items()), tuple(sorted(sizes.assumed)))


def _longest(pieces: Iterable[tuple[str, Work]]) -> dict[str, Work]:
    """Return the work by its title. Of two with one title, such as the model's own answers, the longer one counts."""
    works: dict[str, Work] = {}
    for title, work in pieces:
        works[title] = max(works.get(title, work), work, key=lambda one: one.write)
    return works


def _shared(title: str, work: Work, runs: Sequence[PlannedRun]) -> Shared:
    """Return shared work with the runs that use it; what a notebook alone uses is left while any run is."""
    users = [run for run in runs if title in run.uses]
    return Shared(title, work, len(users), any(not run.done for run in users or runs))


def _pieces(step: Step, sizes: Sizes) -> Iterator[tuple[str, Work]]:
    """Yield the cost of a shared step by its title, and of the pool's losses by model."""
    if isinstance(step, PoolLosses):
        yield from step.cost_by_model(sizes).items()
    elif (work := step.cost(sizes)) != Work():
        yield f"adapter of {step.title}" if isinstance(step, Adapter) else step.title, work


def _monitored(steps: Iterable[Step]) -> list[Step]:
    """Return what the monitors of these trainings read. It is made before them, and is no part of their keys."""
    return [step.spec.monitor.inputs for step in closure(steps)
            if isinstance(step, Adapter) and step.spec.monitor is not None]


def _steering_sweep(study: Study, sizes: Sizes) -> dict[str, Work]:
    """Estimate the steering sweep of notebook 03, if runs on narrow data sets need persona vectors."""
    narrow = [study.task(run).adapter(run) for run in study.runs()]
    if not any(isinstance(step, PersonaVectors) for step in closure(step for step in narrow if step is not None)):
        return {}
    probe = study.profile.probe
    sweep = {study.recipes.steered(layer, strength) for layer in probe.layers for strength in probe.strengths}
    return {step.title: total(one.cost(sizes) for one in sweep) for step in sweep}


def _of_notebooks(study: Study) -> list[Step]:
    """Return the steps of notebook 02, which projects answers onto persona vectors, and of notebook 21, the audits."""
    audits = [] if study.profile.audit is None else audit.needed(study, audit.audited_runs(study, study.runs()))
    projected = study.profile.evaluation.projection_layer is not None and bool(study.runs())
    return [*([study.recipes.vector()] if projected or study.profile.audit is not None else []), *audits]


def finished(study: Study) -> frozenset[Run]:
    """Return the runs in the study's results, if these were made with the profile as it is now.

    A run with triggers, a trajectory or attacks must also be in the table of these, which notebooks 11 and 20 write.
    """
    found = {run for section in SECTIONS for run, _ in results.read(study.folder, study.profile, section)}
    narrow = [run for run in found if isinstance(study.task(run), NarrowTask)]
    for name, wanted in (("triggers", lambda run: study.narrow(run).triggered(run)),
                         ("trajectory", lambda run: study.narrow(run).trajectory(run)),
                         ("persistence", lambda run: study.narrow(run).attacks(run))):
        there = _in_table(study, name)
        found -= {run for run in narrow if wanted(run) and run not in there}
    return frozenset(found)


def _in_table(study: Study, name: str) -> frozenset[Run]:
    """Return the narrow runs in a table of the study; empty if there is none that was made with its profile."""
    path = study.folder / "tables" / f"{name}.csv"
    stamp = stamps.of_file(path.with_suffix(".tex"))
    if not path.is_file() or stamp != stamps.stamp_of(study.profile, study.name):
        return frozenset()
    return frozenset(Run(study.profile.model.name, row["dataset"], row["method"],
                         None if pd.isna(row["setting"]) else row["setting"], row["seed"])
                     for row in pd.read_csv(path).to_dict("records"))
