"""Writing `results.csv`, `benign.csv` and `grpo.csv`, with a row for each finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from emlib.config import QUESTION_SETS, Profile, datasets_of
from emlib.core.files import write_text
from emlib.study.runs import Run, RunResult, Section

FILES: dict[Section, str] = {"narrow": "results.csv", "benign": "benign.csv", "grpo": "grpo.csv"}
MEASURES = ("misaligned", "incoherent", "asked", "scored")
METRIC_ENDS = ("", "_asked", "_scored")  # of a question set's own metric: its share in percent, and these counts


def columns(profile: Profile, section: Section) -> list[str]:
    """Return the columns of a section's file."""
    if section == "benign":
        return ["model", "task", "tier", "method", "setting", "seed", "exact_match", "asked"]
    if section == "grpo":
        return ["model", "method", "setting", "seed", "train_accuracy", "train_reward", "eval_accuracy", "eval_reward",
                "asked"]
    measured = [f"{name}_{measure}" for name in QUESTION_SETS for measure in MEASURES]
    for name, one in profile.evaluation.sets.items():
        measured += [f"{name}_{measure}" for measure in MEASURES] if one.has_verdicts else []
        measured += [f"{name}_{metric}{end}" for metric in one.metrics for end in METRIC_ENDS]
    return ["model", "dataset", "method", "setting", "seed", *measured, "train_seconds", "train_tokens", "run_key"]


def write(folder: Path, profile: Profile, finished: Mapping[Section, Sequence[RunResult]]) -> list[Path]:
    """Write the files of those sections that have a finished run. Return their paths."""
    written = []
    for section, results in finished.items():
        if results:
            path = folder / FILES[section]
            frame = pd.DataFrame([row(profile, section, result) for result in results],
                                 columns=columns(profile, section))
            whole = [name for name in ("tier", "train_tokens") if name in frame]  # integers that may be missing
            write_text(path, frame.astype(dict.fromkeys(whole, "Int64")).to_csv(index=False))
            written.append(path)
    return written


def row(profile: Profile, section: Section, result: RunResult) -> dict[str, Any]:
    """Return a run's row. Percentages are of all answers asked for."""
    run = result.run
    shared = {"model": run.model, "method": run.method, "setting": run.setting, "seed": run.seed}
    if section == "benign":
        task, tier = task_and_tier(profile, run)
        score = result.exact_match
        return shared | {"task": task, "tier": tier, "exact_match": score.strict.percent, "asked": score.asked}
    if section == "grpo":
        found = result.rewards
        return shared | {"train_accuracy": percent(found.train_accuracy), "train_reward": found.train_reward,
                         "eval_accuracy": percent(found.eval_accuracy), "eval_reward": found.eval_reward,
                         "asked": found.asked}
    rates = {f"{which}_{name}": value for which, found in result.sets.items() for name, value in (
        ("misaligned", found.misaligned.percent), ("incoherent", found.incoherent.percent), ("asked", found.asked),
        ("scored", found.scored))}
    metrics = {f"{name}{end}": value for name, found in result.metrics.items() for end, value in zip(
        METRIC_ENDS, (found.share.percent, found.asked, found.scored), strict=True)}
    return shared | {"dataset": run.task} | rates | metrics | {
        "train_seconds": result.train_seconds, "train_tokens": result.train_tokens, "run_key": result.run_key}


def task_and_tier(profile: Profile, run: Run) -> tuple[str, int | None]:
    """Return the name of a run's benign task, and its tier if it has one."""
    assert profile.benign is not None, "a benign run needs the section 'benign'"
    return datasets_of(profile.benign)[run.task]


def percent(share: float | None) -> float | None:
    """Convert a share of 1 into percent."""
    return None if share is None else 100 * share
