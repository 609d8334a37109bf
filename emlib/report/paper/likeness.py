"""Whether a run is one of the paper's, for the numbers and figures that stand beside the paper's.

A run may have the model, the method's name and the setting of a row of the paper, and still another trait, other rows
or other options: it says nothing about the paper's number. What the paper's are is stated by the profiles that have
its values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pandas as pd

from emlib.config import domains_of, load_profile, trait_of
from emlib.core.progress import say
from emlib.report.paper import published
from emlib.report.tables.rows import condition
from emlib.steps.recipes import Recipes
from emlib.study.runs import Run
from emlib.study.study import Study
from emlib.study.tasks import BenignTask, GrpoTask, Task, tasks_of, with_changes

PROFILES = {published.SMALL: "paper-7b", published.LARGE: "paper-32b", "Qwen2.5-3B-Instruct": "grpo-3b"}
ROWS = 5400  # that each narrow data set has for training (section 4.3)
# What makes a benign task. Its prompts and seeds are not stated in the paper.
OF_TASK = {"kind", "examples", "transformations", "largest", "held_out", "train", "test"}
OF_PROBLEMS = {"kind", "train_items"}  # of those that are evaluated, B.3 states two numbers
NO_OPTION = {"reference"}  # where the reference model's states are kept changes no result
MOST = 8  # runs in one line


def unlike(study: Study, run: Run) -> list[str]:
    """Return in what a run differs from the paper's run of its name: "trait", "data", "options"; empty if in nothing.

    The model is one of `PROFILES`. The run's setting is its hyperparameter value, also one that is not swept.
    """
    ours, paper = study.task(run), _paper(run.model).get(run.task)
    if paper is None:
        return ["data"]
    parts: dict[str, Callable[[Task], Any]] = {
        "trait": lambda task: trait_of(task.profile), "data": _data,
        "options": lambda task: [one.model_dump(mode="json", exclude=NO_OPTION) for one in task.defenses(run)]}
    return [name for name, of in parts.items() if of(ours) != of(paper)]


@cache
def _paper(model: str) -> dict[str, Task]:
    """Return the tasks on which the paper trains a model, by name."""
    name = PROFILES[model.rpartition("/")[2]]
    return tasks_of(Recipes(load_profile(name), name))


def _data(task: Task) -> Any:
    """Return what the task's runs are trained on: its data and their number."""
    if isinstance(task, GrpoTask):
        return task.grpo.data.model_dump(include=OF_PROBLEMS)
    if isinstance(task, BenignTask):
        rows = with_changes(task.profile.training, task.task.training).train_rows
        return task.task.model_dump(include=OF_TASK) | {"train_rows": rows}
    return domains_of(task.profile).get(task.name), min(task.profile.training.train_rows or ROWS, ROWS)


def alike(study: Study, frame: pd.DataFrame) -> list[bool]:
    """Return for each row whether it is of a run like the paper's, and say in one line which are not.

    `frame` has the columns model, dataset, method and setting, of runs whose names the paper has.
    """
    found: dict[str, list[str]] = {}
    names = [f"{row['dataset']} {condition(row)}" for row in frame.to_dict("records")]
    for name, row in zip(names, frame.to_dict("records"), strict=True):
        setting = None if pd.isna(row["setting"]) else float(row["setting"])
        if name not in found:
            found[name] = unlike(study, Run(row["model"], row["dataset"], row["method"], setting, 0))
    left = [f"{name} ({', '.join(reasons)})" for name, reasons in found.items() if reasons]
    if left:
        more = f", and {len(left) - MOST} more" if len(left) > MOST else ""
        say(f"Not compared with the paper, which has others: {', '.join(left[:MOST])}{more}.")
    return [not found[name] for name in names]
