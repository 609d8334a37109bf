"""The rows of a study's pool, their losses and order, and which of them were interleaved, read from the store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from emlib.config import JudgeRefusals
from emlib.core.errors import StoreError
from emlib.core.files import read_records
from emlib.core.records import ADDED, AddedRow, Example
from emlib.core.step import Step
from emlib.scoring.order import Ranked, RowLosses
from emlib.scoring.refusals import Filtered, by_judge, by_keywords
from emlib.steps.added import AddedRows
from emlib.steps.pool import PoolLosses, Refusals
from emlib.study.runs import Run
from emlib.study.study import Study


def candidates(study: Study) -> list[Example]:
    """Return the pool's rows, in the file's order."""
    return _records(study, study.recipes.pool)


def added_step(study: Study, run: Run) -> AddedRows | None:
    """Return the step of the rows that the run interleaves; None if it interleaves none."""
    adapter = study.task(run).adapter(run)
    step = None if adapter is None else dict(adapter.artefacts).get("added")
    return step if isinstance(step, AddedRows) else None


def selection(study: Study, run: Run) -> list[Ranked]:
    """Return the pool's rows in the run's order, followed by those that are never interleaved."""
    rows = added_step(study, run)
    assert rows is not None, f"nothing is interleaved in {run}"
    return _records(study, rows.selection)


def ranking(study: Study, runs: Iterable[Run]) -> list[Run]:
    """Return the runs whose rows of the pool are ranked by losses; those that take rows at random are left out."""
    return [run for run in runs if losses_step(study, run) is not None]


def losses_step(study: Study, run: Run) -> PoolLosses | None:
    """Return the step of the losses by which the run's rows are chosen; None if they are chosen at random."""
    rows = added_step(study, run)
    return None if rows is None else rows.selection.losses


def losses(study: Study, run: Run) -> list[RowLosses]:
    """Return the losses of the pool's rows, in the pool's order, by which the run's rows are chosen."""
    step = losses_step(study, run)
    assert step is not None, f"{run} chooses its rows at random"
    return _records(study, step)


def refusals(study: Study) -> Filtered | None:
    """Apply the refusal filter to the pool's rows; None if it is a judge whose scores are not in the store yet."""
    pool = study.inputs.pool_spec
    if not isinstance(pool.refusals, JudgeRefusals):
        return by_keywords(candidates(study), pool.refusal_keywords, pool.refusal_words)
    found = study.read(Refusals(study.recipes.pool, pool.refusals))
    return None if found is None else by_judge(found, pool.refusals.threshold)


def added(study: Study, run: Run) -> list[AddedRow]:
    """Return the rows that were interleaved in the run's training; empty if it is not trained yet."""
    adapter = study.adapter(run)
    return read_records(adapter.file(ADDED), AddedRow) if adapter is not None and adapter.has(ADDED) else []


def _records(study: Study, step: Step) -> list[Any]:
    found = study.read(step)
    if found is None:
        raise StoreError(f"The artefact '{step.stage}' of profile '{study.name}' is not made yet. Run notebook "
                         "04_data_selection first, or study.select(runs).")
    return found
