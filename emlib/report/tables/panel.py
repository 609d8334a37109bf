"""Results on standard benchmarks (`make panel`), read from the store: a row for each run, task and metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from emlib.core.digests import of_value
from emlib.core.files import write_text
from emlib.evaluation.panel import PanelTask
from emlib.report.tables.result_tables import write
from emlib.report.tables.rows import DASH, IDENTITY, identity_of, readable_identity, runs_of, with_error
from emlib.steps.measures import PanelResult
from emlib.store.artefacts import Artefact
from emlib.study.runs import Run
from emlib.study.study import Study

COLUMNS = [*IDENTITY, "task", "version", "limit", "scorer", "metric", "headline", "value", "stderr", "samples",
           "answers", "cut", "too_long", "log", "run_key", "variant"]
FILE = "panel.csv"


def numbers(study: Study) -> pd.DataFrame:
    """Return a row for each run on narrow data, task and metric that is in the store, as inspect's logs have them.

    Only results with the profile's sampling count. `limit` is the number of samples to which a task was cut. `headline`
    marks a task's main metric. `answers` are more than `samples` where a task has epochs or asks several times a
    sample; `cut` counts those that reached the token limit, and `too_long` prompts that did not fit into the model.
    `log` is the path of the log below the folder of results. `variant` tells tasks apart that have one name, version
    and limit, and other samples, code or packages; it is empty where there is one.
    """
    results, rows = list(_results(study)), []
    names = Counter(_name(task) for task in {task for _, task, _ in results})
    for run, task, found in results:
        facts, log = found.facts, found.file(found.facts["log"]).relative_to(study.store.root.parent)
        shared = identity_of(run) | {
            "task": task.name, "version": task.version, "limit": task.limit,
            **{name: facts[name] for name in ("answers", "cut", "too_long")}, "log": str(log),
            "run_key": study.run_key(run),
            "variant": of_value(task.key)[:8] if names[_name(task)] > 1 else ""}
        rows += [shared | metric for metric in facts["metrics"]]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"limit": "Int64", "setting": float, "value": float,
                                                       "stderr": float})


def _results(study: Study) -> Iterator[tuple[Run, PanelTask, Artefact]]:
    """Yield each run's results on the tasks of which the store has any result."""
    made = [study.store.at(stage, key) for stage, key in study.store.entries() if stage == PanelResult.stage]
    tasks = list(dict.fromkeys(PanelTask("", **one.facts["task"]) for one in made if one is not None))
    for run in study.runs():
        adapter = study.task(run).adapter(run)
        for task in tasks:
            found = study.found(study.recipes.panel(adapter, task))
            if found is not None:
                yield run, task, found


def _name(task: PanelTask) -> tuple[str, str, int | None]:
    """Return what `heading` calls a task by."""
    return task.name, task.version, task.limit


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `numbers` for readers: a row for each run, a column for each task's main metric with its standard error.

    A number is marked with `!` if a prompt was too long for the model or more than 1 in 5 answers were cut.
    """
    people = []
    for run in runs_of(frame[frame["headline"].astype(bool)]):
        row = readable_identity(run.iloc[0])
        for one in run.to_dict("records"):
            row[heading(one)] = with_error(one["value"], one["stderr"], 3) + (
                "!" if one["too_long"] or one["cut"] > one["answers"] / 5 else "")
        people.append(row)
    return pd.DataFrame(people).fillna(DASH)


def heading(row: dict) -> str:
    """Return what a table or a figure calls a task's metric: with its version, limit and variant if they matter."""
    limit = "" if pd.isna(row["limit"]) else f" (first {row['limit']})"
    variant = f" [{row['variant']}]" if row["variant"] else ""
    return f"{row['task']} {row['version']}{limit}{variant}: {row['metric']}"


def save(study: Study, frame: pd.DataFrame) -> list[Path]:
    """Write `numbers` as `panel.csv` beside `results.csv`, and as tables for readers."""
    write_text(study.folder / FILE, frame.to_csv(index=False))
    return [study.folder / FILE, *write(frame, readable(frame), study.folder / "tables", "panel")]
