"""The paper's tables that contain a planned run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from emlib.report.paper import published
from emlib.study.runs import Run
from emlib.study.tasks import GRPO

Tables = Mapping[Run, tuple[int, ...]]


def in_paper(planned: Iterable[Run]) -> Tables:
    """Return the numbers of the tables that contain each run; a table with n seeds has the seeds 0 to n - 1."""
    found: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for number in published.TABLES:
        for row in published.table(number).to_dict("records"):
            found.setdefault(_key_of_row(row), []).append((number, int(row["n"])))
    return {run: tuple(number for number, seeds in found.get(_key_of_run(run), ()) if run.seed < seeds)
            for run in planned}


def _key_of_row(row: dict[str, Any]) -> tuple[Any, ...]:
    tier, setting = row.get("tier"), row["setting"]
    task = row.get("dataset", row.get("task", GRPO))
    named = task if tier is None or pd.isna(tier) else f"{task}-{int(tier)}"
    return row["model"], named, row["method"], None if pd.isna(setting) else float(setting)


def _key_of_run(run: Run) -> tuple[Any, ...]:
    return (run.model.rpartition("/")[2], run.task, run.method,
            None if run.setting is None else float(run.setting))
