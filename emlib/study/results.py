"""Writing and reading `results.csv`, `benign.csv` and `grpo.csv`, with a row for each finished run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from emlib.config import QUESTION_SETS, Profile, datasets_of
from emlib.config.benign import dataset_name
from emlib.core.files import write_text
from emlib.study.runs import FILES, Run, RunResult, Section
from emlib.study.stamps import is_recorded
from emlib.study.tasks import GRPO

NAMES = ("model", "dataset", "task", "method", "trigger", "attack", "set", "against", "run_key", "vector", "adapter",
         "rated_by", "file_rows")  # columns of our tables


def read_table(path: Path, **types: str) -> pd.DataFrame:
    """Read a table of ours (CSV): only an empty cell is missing, and names are texts, also one such as `null` or `inf`.

    `types` are those of further columns.
    """
    return pd.read_csv(path, dtype=dict.fromkeys(NAMES, "str") | types, keep_default_na=False, na_values=[""])


def write(folder: Path, profile: Profile, finished: Mapping[Section, Sequence[RunResult]]) -> list[Path]:
    """Write the files of those sections that have a finished run, and remove those of others. Return their paths."""
    written = []
    for section, results in finished.items():
        path = folder / FILES[section]
        if not results:
            path.unlink(missing_ok=True)
        else:
            frame = pd.DataFrame([row(profile, section, result) for result in results])
            whole = [name for name in ("tier", "train_tokens") if name in frame]  # integers that may be missing
            write_text(path, frame.astype(dict.fromkeys(whole, "Int64")).to_csv(index=False))
            written.append(path)
    return written


def read(folder: Path, profile: Profile, section: Section) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Yield each row of a section's file: its run, and all its values by column; none of another profile's results."""
    path = folder / FILES[section]
    if not (path.is_file() and is_recorded(profile, folder)):
        return
    for row in read_table(path, tier="Int64").to_dict("records"):
        values: dict[str, Any] = {str(name): None if pd.isna(value) else value for name, value in row.items()}
        yield Run(task=_task(values, section), **{field.name: values[field.name] for field in fields(Run)
                                                  if field.name != "task"}), values


def _task(row: dict[str, Any], section: Section) -> str:
    if section == "narrow":
        return str(row["dataset"])
    return GRPO if section == "grpo" else dataset_name(str(row["task"]), row["tier"])


def row(profile: Profile, section: Section, result: RunResult) -> dict[str, Any]:
    """Return a run's row, in the order of the file's columns. Percentages are of all answers asked for."""
    run = result.run
    condition = {"method": run.method, "setting": run.setting, "seed": run.seed}
    if section == "benign":
        task, tier = task_and_tier(profile, run)
        score = result.exact_match
        return {"model": run.model, "task": task, "tier": tier, **condition, "exact_match": score.strict.percent,
                "asked": score.asked}
    if section == "grpo":
        found = result.rewards
        return {"model": run.model, **condition,
                "train_accuracy": percent(found.train_accuracy), "train_reward": found.train_reward,
                "eval_accuracy": percent(found.eval_accuracy), "eval_reward": found.eval_reward, "asked": found.asked}
    return {"model": run.model, "dataset": run.task, **condition, **_measured(profile, result),
            "train_seconds": result.train_seconds, "train_tokens": result.train_tokens, "run_key": result.run_key}


def _measured(profile: Profile, result: RunResult) -> dict[str, Any]:
    """Return the rates of each question set, followed by those of its own metrics."""
    found: dict[str, Any] = {}
    sets = profile.evaluation.sets
    for which in (*QUESTION_SETS, *sets):
        if (rates := result.sets.get(which)) is not None:
            found |= {f"{which}_misaligned": rates.misaligned.percent,
                      f"{which}_incoherent": rates.incoherent_shown.percent,
                      f"{which}_asked": rates.asked, f"{which}_scored": rates.scored}
        for name in sets[which].metrics if which in sets else ():
            metric = result.metrics[f"{which}_{name}"]
            found |= {f"{which}_{name}": metric.share.percent, f"{which}_{name}_asked": metric.asked,
                      f"{which}_{name}_scored": metric.scored}
    return found


def task_and_tier(profile: Profile, run: Run) -> tuple[str, int | None]:
    """Return the name of a run's benign task, and its tier if it has one."""
    assert profile.benign is not None, "a benign run needs the section 'benign'"
    return datasets_of(profile.benign)[run.task]


def percent(share: float | None) -> float | None:
    """Convert a share of 1 into percent."""
    return None if share is None else 100 * share
