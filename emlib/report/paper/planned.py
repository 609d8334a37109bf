"""Which tables of the paper have a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from emlib.report.paper import published
from emlib.study.benign import BenignRun
from emlib.study.plan.work import AnyRun
from emlib.study.runs import Run

Tables = Mapping[AnyRun, tuple[int, ...]]


def in_paper(planned: Iterable[AnyRun]) -> Tables:
    """The numbers of the tables that have each run; a table with n seeds has the seeds 0 to n - 1."""
    found: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for number in published.TABLES:
        for row in published.table(number).to_dict("records"):
            found.setdefault(_key_of_row(row), []).append((number, int(row["n"])))
    return {run: tuple(number for number, seeds in found.get(_key_of_run(run), ()) if run.seed < seeds)
            for run in planned}


def _key_of_row(row: dict[str, Any]) -> tuple[Any, ...]:
    tier, setting = row.get("tier"), row["setting"]
    return (row["model"], row.get("dataset", row.get("task")), None if tier is None or pd.isna(tier) else int(tier),
            row["method"], None if pd.isna(setting) else float(setting))


def _key_of_run(run: AnyRun) -> tuple[Any, ...]:
    what = (run.task, run.tier) if isinstance(run, BenignRun) else (run.dataset if isinstance(run, Run) else None, None)
    return run.model.rpartition("/")[2], *what, run.method, None if run.setting is None else float(run.setting)
