"""Writing `results.csv`, `benign.csv` and `grpo.csv`, with a row for each finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from emlib.config import datasets_of
from emlib.core.files import write_text
from emlib.study.runs import Run, RunResult, Section

if TYPE_CHECKING:
    from emlib.study.study import Study

FILES: dict[Section, str] = {"narrow": "results.csv", "benign": "benign.csv", "grpo": "grpo.csv"}
QUESTION_SETS = ("general", "in_domain")
MEASURES = ("misaligned", "incoherent", "asked", "scored")


def columns(study: Study, section: Section) -> list[str]:
    """Returns the columns of a section's file."""
    if section == "benign":
        return ["model", "task", "tier", "method", "setting", "seed", "exact_match", "asked"]
    if section == "grpo":
        return ["model", "method", "setting", "seed", "train_accuracy", "train_reward", "eval_accuracy", "eval_reward",
                "asked"]
    sets = [*QUESTION_SETS, *study.profile.evaluation.sets]
    return ["model", "dataset", "method", "setting", "seed", *(f"{name}_{measure}" for name in sets
                                                               for measure in MEASURES),
            "train_seconds", "train_tokens", "run_key"]


def write(study: Study) -> list[Path]:
    """Writes the files of those sections that have a finished run. Returns their paths."""
    written = []
    for section, name in FILES.items():
        finished = [result for run in study.runs(section) if (result := study.result(run)) is not None]
        if finished:
            path = study.folder / name
            frame = pd.DataFrame([row(study, section, result) for result in finished], columns=columns(study, section))
            write_text(path, frame.astype({"tier": "Int64"} if section == "benign" else {}).to_csv(index=False))
            written.append(path)
    return written


def row(study: Study, section: Section, result: RunResult) -> dict[str, Any]:
    """Returns a run's row. Percentages are of all answers asked for."""
    run = result.run
    shared = {"model": run.model, "method": run.method, "setting": run.setting, "seed": run.seed}
    if section == "benign":
        task, tier = task_and_tier(study, run)
        score = result.exact_match
        return shared | {"task": task, "tier": tier, "exact_match": score.strict.percent, "asked": score.asked}
    if section == "grpo":
        found = result.rewards
        return shared | {"train_accuracy": percent(found.train_accuracy), "train_reward": found.train_reward,
                         "eval_accuracy": percent(found.eval_accuracy), "eval_reward": found.eval_reward,
                         "asked": found.asked}
    rates = {f"{which}_{name}": value for which in result.scores for name, value in (
        ("misaligned", result.rates(which).misaligned.percent), ("incoherent", result.rates(which).incoherent.percent),
        ("asked", result.rates(which).asked), ("scored", result.rates(which).scored))}
    return shared | {"dataset": run.task} | rates | {
        "train_seconds": result.train_seconds, "train_tokens": result.train_tokens, "run_key": result.run_key}


def task_and_tier(study: Study, run: Run) -> tuple[str, int | None]:
    """Returns the name of a run's benign task, and its tier if it has one."""
    assert study.profile.benign is not None, "a benign run needs the section 'benign'"
    return datasets_of(study.profile.benign)[run.task]


def percent(share: float | None) -> float | None:
    """Converts a share of 1 into percent."""
    return None if share is None else 100 * share
