"""Results on standard benchmarks (`make panel`), read from the store: a row for each run, task and metric."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from emlib.core.files import write_text
from emlib.report.tables.result_tables import write
from emlib.steps.panel import PanelResult
from emlib.store.artefacts import Artefact
from emlib.study.study import Study

IDENTITY = ["dataset", "method", "setting", "seed"]
COLUMNS = [*IDENTITY, "task", "version", "limit", "scorer", "metric", "headline", "value", "stderr", "samples", "cut",
           "too_long", "log", "run_key"]
FILE = "panel.csv"


def numbers(study: Study) -> pd.DataFrame:
    """Return a row for each run on narrow data, task and metric that is in the store, as inspect's logs have them.

    `limit` is the number of samples to which a task was cut. `headline` marks a task's main metric. `cut` counts
    answers that reached the token limit, and `too_long` prompts that did not fit into the model. `log` is the path of
    the log below the folder of results.
    """
    found, rows = list(_results(study)), []
    for run in study.runs():
        adapter = study.task(run).adapter(run)
        weights = {"model": study.recipes.model.identity, "adapter": None if adapter is None else adapter.key}
        for artefact in (one for one in found if one.facts["weights"] == weights):
            facts, task = artefact.facts, artefact.facts["task"]
            log = artefact.file(facts["log"]).relative_to(study.store.root.parent)
            shared = {"dataset": run.task, "method": run.method, "setting": run.setting, "seed": run.seed,
                      "task": task["name"], "version": task["version"], "limit": task["limit"], "cut": facts["cut"],
                      "too_long": facts["too_long"], "log": str(log), "run_key": study.run_key(run)}
            rows += [shared | metric for metric in facts["metrics"]]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"limit": "Int64", "setting": float, "value": float,
                                                       "stderr": float})


def _results(study: Study) -> Iterator[Artefact]:
    for stage, key in study.store.entries():
        if stage == PanelResult.stage and (found := study.store.at(stage, key)) is not None:
            yield found


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `numbers` for readers: a row for each run, a column for each task's main metric with its standard error.

    A number is marked with `!` if a prompt was too long for the model or more than 1 in 5 answers were cut.
    """
    people = []
    for _, run in frame[frame["headline"].astype(bool)].groupby(IDENTITY, dropna=False, sort=False):
        first = run.iloc[0]
        row = {"Data set": first["dataset"], "Method": first["method"],
               "Setting": "" if pd.isna(first["setting"]) else f"{first['setting']:g}", "Seed": first["seed"]}
        for one in run.to_dict("records"):
            row[heading(one)] = _cell(one["value"], one["stderr"]) + (
                "!" if one["too_long"] or one["cut"] > one["samples"] / 5 else "")
        people.append(row)
    return pd.DataFrame(people).fillna("–")


def heading(row: dict) -> str:
    """Return what a table or a figure calls a task's metric, with its limit and version if they matter."""
    limit = "" if pd.isna(row["limit"]) else f" (first {row['limit']})"
    return f"{row['task']} {row['version']}{limit}: {row['metric']}"


def _cell(value: float, stderr: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}" + ("" if pd.isna(stderr) else f" ± {stderr:.3f}")


def save(study: Study, frame: pd.DataFrame) -> list[Path]:
    """Write `numbers` as `panel.csv` beside `results.csv`, and as tables for readers."""
    write_text(study.folder / FILE, frame.to_csv(index=False))
    return [study.folder / FILE, *write(frame, readable(frame), study.folder / "tables", "panel")]
