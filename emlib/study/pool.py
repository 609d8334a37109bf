"""What a study's pool holds, and which of its rows were interleaved: read from what is made."""

from __future__ import annotations

from emlib.config import JudgeRefusals
from emlib.core.errors import StoreError
from emlib.core.files import read_records
from emlib.core.records import ADDED, AddedRow, Example, as_example
from emlib.core.step import Step
from emlib.scoring.records import Declining, Ranked, RowLosses
from emlib.scoring.refusals import Filtered, by_judge, by_keywords
from emlib.steps.pool import AddedRows, PoolLosses, Refusals, Selection
from emlib.store.artefacts import Artefact
from emlib.study.runs import Run
from emlib.study.study import Study


def candidates(study: Study) -> list[Example]:
    """The pool's rows, in the file's order.

    Raises:
        StoreError: the pool was not read yet.
    """
    return read_records(_found(study, study.recipes.pool).folder / "rows.jsonl", as_example)


def added_step(study: Study, run: Run) -> AddedRows | None:
    """The step of the rows that the run interleaves; None where it interleaves none."""
    adapter = study.task(run).adapter(run)
    return None if adapter is None else next((step for step in adapter.inputs if isinstance(step, AddedRows)), None)


def selection_step(study: Study, run: Run) -> Selection | None:
    """The step of the order in which the run takes the pool's rows; None where it takes none."""
    rows = added_step(study, run)
    return None if rows is None else rows.selection


def selection(study: Study, run: Run) -> list[Ranked]:
    """The pool's rows in the order in which the run takes them, and after them those that it never does.

    Raises:
        StoreError: the order was not made yet.
    """
    step = selection_step(study, run)
    assert step is not None, f"nothing is interleaved in {run}"
    return read_records(_found(study, step).file("order.jsonl"), Ranked)


def losses_step(study: Study, run: Run) -> PoolLosses | None:
    """The step of the losses that the run's rows are chosen by; None where they are not."""
    step = selection_step(study, run)
    return None if step is None else step.losses


def losses(study: Study, run: Run) -> list[RowLosses]:
    """The losses of the pool's rows, in its order, that the run's rows are chosen by.

    Raises:
        StoreError: they were not computed yet.
    """
    step = losses_step(study, run)
    assert step is not None, f"{run} takes its rows at random"
    return read_records(_found(study, step).file("losses.jsonl"), RowLosses)


def refusals(study: Study) -> Filtered | None:
    """What the refusal filter says of the pool's rows; None where it is a judge that was not asked yet."""
    pool = study.recipes.pool_spec
    if not isinstance(pool.refusals, JudgeRefusals):
        return by_keywords(candidates(study), pool.refusal_keywords, pool.refusal_words)
    found = study.found(Refusals(study.recipes.pool, pool.refusals))
    return None if found is None else by_judge(
        read_records(found.file("declining.jsonl"), Declining), pool.refusals.threshold)


def added(study: Study, run: Run) -> list[AddedRow]:
    """The rows that the run was trained on beside its own; empty where it is not trained yet."""
    adapter = study.adapter(run)
    path = None if adapter is None else adapter.folder / ADDED
    return read_records(path, AddedRow) if path is not None and path.is_file() else []


def _found(study: Study, step: Step) -> Artefact:
    found = study.found(step)
    if found is None:
        raise StoreError(f"The {step.stage} of profile '{study.name}' is not made yet. Run notebook 03_data_selection "
                         "first, or study.select(runs).")
    return found
