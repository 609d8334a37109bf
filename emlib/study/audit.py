"""The audits of a study's training rows: which there are, and what they say of a run's data before it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from emlib.config import BASELINES
from emlib.core.defense import acting, left_out
from emlib.core.progress import say
from emlib.core.step import Step
from emlib.data.lazy import Rows
from emlib.evaluation.statistics import NORMAL, Interval
from emlib.steps.added import AddedRows
from emlib.steps.measures import RowAudit
from emlib.study.runs import Run
from emlib.study.study import Study


@dataclass(frozen=True)
class DataDifference:
    """The mean projection difference of a run's training rows."""

    mean: float
    interval: Interval | None  # None where a part has one row
    rows: int  # that the run is trained on in an epoch
    audited: int  # those with a difference


def audited_runs(study: Study, runs: Sequence[Run]) -> list[Run]:
    """Return those runs on narrow data sets whose training rows are audited: where only the data differ.

    A plain-text corpus has no prompts that the model could answer, so that runs with rows of one are left out.
    """
    wanted = None if study.profile.audit is None else study.profile.audit.methods
    return [run for run in runs if study.training(run) is not None and (
        run.method in BASELINES or all(defense.data_only for defense in study.defenses(run)))
        and (wanted is None or run.method in wanted) and not any(
            rows.selection.pool.form == "text" for rows in study.task(run).pool_rows(run))]


def steps(study: Study, run: Run) -> list[RowAudit]:
    """Return the steps of the audits of a run's rows: those of its data set, then those that its defenses add.

    Where a defense of the study has all of these rows audited, that audit is the step, and otherwise one of the
    profile's number of rows. Runs with and without that defense are then compared by the same rows.
    """
    assert study.profile.audit is not None, "the profile has a section 'audit'"
    spec = study.training(run)
    assert spec is not None, "the untrained model has no training rows"
    parts: list[Rows | AddedRows] = [spec.rows, *study.task(run).pool_rows(run)]
    whole = set(_for_defenses(study, [other for other in study.runs() if other.task == run.task]))
    return [every if (every := study.recipes.audit_of(rows, None)) in whole
            else study.recipes.audit_of(rows, study.profile.audit.rows) for rows in parts]


def needed(study: Study, runs: Sequence[Run]) -> list[Step]:
    """Return the steps of the audits of these runs, each once, with those by which a defense leaves out rows."""
    return list(dict.fromkeys([*(step for run in runs for step in steps(study, run)), *_for_defenses(study, runs)]))


def _for_defenses(study: Study, runs: Sequence[Run]) -> list[RowAudit]:
    """Return the audits by which the defenses of these runs leave out rows: of all rows of a data set."""
    return [step for run in runs if any(defense.has("filtered") for defense in study.defenses(run))
            for step in study.task(run).adapter(run).inputs if isinstance(step, RowAudit)]


def complete(study: Study, runs: Sequence[Run]) -> list[Run]:
    """Audit the rows of those runs whose data alone differ, and return these runs; none without a section `audit`."""
    spec = study.profile.audit
    if spec is None:
        return []
    found = audited_runs(study, runs)
    known = [method.name for method in study.profile.methods]
    for name in spec.methods or ():
        if name not in known:
            say(f"audit: names the method '{name}', which this profile does not have.")
    study.need(needed(study, found))
    return found


def difference(study: Study, run: Run) -> DataDifference | None:
    """Compute the mean projection difference of the rows that a run is trained on; None if an audit is missing.

    Each part counts by its number of rows: the data set's without those that a defense leaves out, and each set of
    added rows.
    """
    without = _left_out(study, run)
    parts: list[tuple[int, list[float]]] = []
    for place, step in enumerate(steps(study, run)):
        found = study.read(step)
        if found is None or without is None:
            return None
        out = without if place == 0 else frozenset()
        count = step.rows.count - len(out)
        parts.append((count, [row.difference for row in found if row.difference is not None and row.place not in out]))
    return weighted(parts)


def weighted(parts: Sequence[tuple[int, Sequence[float]]]) -> DataDifference | None:
    """Return the mean of parts, each given by its number of rows and the differences of some of them.

    None where a part has rows and none of their differences is known: the others' mean is not that of the whole.
    """
    known = [(count, values) for count, values in parts if count]
    whole = sum(count for count, _ in known)
    if not all(values for _, values in known) or not whole:
        return None
    mean = sum(count * fmean(values) for count, values in known) / whole
    half = None if any(len(values) < 2 for _, values in known) else NORMAL * sum(
        (count / whole) ** 2 * variance(values) / len(values) for count, values in known) ** 0.5
    return DataDifference(mean, None if half is None else Interval(mean - half, mean + half), whole,
                          sum(len(values) for _, values in known))


def _left_out(study: Study, run: Run) -> frozenset[int] | None:
    """Return the places of the rows that the run's defenses leave out; None if an audit is missing."""
    spec, artefacts = study.training(run), {}
    assert spec is not None, "the untrained model has no training rows"
    filtering = [defense for defense in acting(spec.defenses) if defense.has("filtered")]
    for defense in filtering:
        for name, step in defense.needs(study.recipes, spec).items():
            found = study.found(step)
            if found is None:
                return None
            artefacts[name] = found.folder
    return left_out(filtering, spec.rows.examples, artefacts)
