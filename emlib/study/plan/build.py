"""The plan of a study: every run of its profile, every shared piece once, and what of them is done.

A run is done where the results beside the profile's record have it (`results.csv`, `benign.csv`, `grpo.csv`), and that
record is the profile as it is now. Pieces that are in the store without their run being whole are not taken off: what
is said to be left is the most that can be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from emlib.core import paths
from emlib.core.schema import read_yaml
from emlib.study.benign import BenignRun
from emlib.study.overrides import as_kept
from emlib.study.plan.narrow import Worker
from emlib.study.plan.reinforced import reinforced
from emlib.study.plan.speed import shape
from emlib.study.plan.work import AnyRun, Plan, PlannedRun, Shared, Work
from emlib.study.rl import RlRun, RlStudy
from emlib.study.runs import Run
from emlib.study.study import Study

RESULTS: dict[str, type[AnyRun]] = {"results.csv": Run, "benign.csv": BenignRun, "grpo.csv": RlRun}


def plan(study: Study) -> Plan:
    """Everything that a study takes."""
    worker = Worker(study, shape(study.profile.model))
    done = finished(study)
    runs = tuple(PlannedRun(run, work, tuple(dict.fromkeys(uses)), run in done)
                 for run, (work, uses) in _each(worker, study))
    users = Counter(name for planned in runs for name in planned.uses)
    left = {name for planned in runs if not planned.done for name in planned.uses}
    shared = tuple(Shared(name, work, users[name], name in left or (users[name] == 0 and bool(left)))
                   for name, work in worker.pieces.items())
    return Plan(runs, shared, tuple(sorted(worker.sizes.assumed)))


def _each(worker: Worker, study: Study) -> Iterator[tuple[AnyRun, tuple[Work, list[str]]]]:
    for run in study.runs():
        yield run, worker.narrow(run)
    for on_task in worker.benign.runs():
        yield on_task, worker.on_task(on_task)
    if study.profile.grpo is not None:
        rl = RlStudy(study)
        for rewarded in rl.runs():
            yield rewarded, reinforced(worker, rl, rewarded)


def finished(study: Study) -> frozenset[AnyRun]:
    """The runs that stand in the study's results, if these were made with the profile as it is now."""
    record = study.folder / paths.EFFECTIVE
    if not record.is_file() or read_yaml(record) != as_kept(study.profile):
        return frozenset()
    return frozenset(run for name, kind in RESULTS.items() for run, _ in rows(study.folder / name, kind))


def rows(path: Path, kind: type[AnyRun]) -> Iterator[tuple[AnyRun, dict[str, Any]]]:
    """Each row of a file of results: the run that it is of, and all that it says."""
    if not path.is_file():
        return
    for row in pd.read_csv(path, dtype={"tier": "Int64"}).to_dict("records"):
        said: dict[str, Any] = {field.name: None if pd.isna(row[field.name]) else row[field.name]
                                for field in fields(kind)}
        yield kind(**said), row
