"""The benign tasks as tables and a figure: Tables 3 and 4 per run, Table 11 over seeds, each strict and lenient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emlib.config import UNTRAINED
from emlib.evaluation.statistics import over_seeds
from emlib.report.figures.looks import GENERAL
from emlib.report.figures.plots import mark, nothing, panels, rows_of_percent
from emlib.report.tables import result_tables
from emlib.report.tables.averages import marked_seeds
from emlib.report.tables.rows import DASH, cell_of, cells, share_columns, shown
from emlib.study.results import task_and_tier
from emlib.study.runs import Run, RunResult, like_first
from emlib.study.study import Study

MEASURES = {"exact_match": "Exact match %", "lenient": "Lenient match %", "f1": "F1 %"}
MATCHES = {"strict": "exact_match", "lenient": "lenient"}  # how an answer is read: see emlib.evaluation.extraction
KEYS = ["task", "tier", "method", "setting"]
COLUMNS = ["model", *KEYS, "seed", *(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")),
           "asked", "cut"]


def numbers(study: Study, results: Sequence[RunResult]) -> pd.DataFrame:
    """Return one row per run: each measure in percent of the answers asked for, with its interval by question."""
    rows = []
    for result in results:
        score, (task, tier) = result.exact_match, task_and_tier(study.profile, result.run)
        rows.append(asdict(result.run) | {"task": task, "tier": tier, "asked": score.asked, "cut": score.cut}
                    | share_columns("exact_match", score.strict) | share_columns("lenient", score.lenient)
                    | share_columns("f1", score.f1))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"tier": "Int64", "setting": float})


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `numbers` for readers: "37.0 [34.1, 39.9]", and a dash where a task has no such measure."""
    measures = {heading: cells(frame, name) for name, heading in MEASURES.items()}
    return pd.DataFrame(
        _identity(frame) | {"Seed": frame["seed"]} | measures | {"Asked": frame["asked"], "Cut": frame["cut"]})


def by_tier(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the paper's Tables 3 and 4: a row per method, a column per task and tier; strict, then lenient matches.

    A cell has the share and its interval over questions for one seed; for several seeds their mean and standard
    deviation, and Student's interval over seeds. One with fewer seeds than others of its column says so.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    groups = frame.groupby([*_names(frame)], sort=False)
    fewer = {of: mark for _, counts in groups.size().groupby(level=1)
             for of, mark in zip(counts.index, marked_seeds(counts), strict=True)}
    for match, measure in MATCHES.items():
        for (who, where), runs in groups:
            row = rows.setdefault((match, who), {"Match": match, "Method": who})
            row[where] = _summary(runs, measure) + fewer[who, where]
    return pd.DataFrame([*rows.values()], columns=None if rows else ["Match", "Method"]).fillna(DASH)


def seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Return Table 11: mean, sample standard deviation and Student's 95% interval over seeds per method and task.

    Strict matches come first, then lenient ones. The interval covers the variation between training runs, and not the
    choice of questions.
    """
    rows = []
    for match, measure in MATCHES.items():
        for _, runs in frame.groupby(KEYS, sort=False, dropna=False):
            found = over_seeds(runs[measure].tolist())
            low, high = (found.interval.low, found.interval.high) if found.interval else (np.nan, np.nan)
            rows.append({"Match": match} | {key: column.iloc[0] for key, column in _identity(runs).items()} | {
                "Seeds": found.seeds, "Mean %": found.mean, "SD": found.deviation, "low": low, "high": high})
    return pd.DataFrame(
        rows, columns=["Match", "Task", "Tier", "Method", "Setting", "Seeds", "Mean %", "SD", "low", "high"])


def _summary(runs: pd.DataFrame, measure: str) -> str:
    found = over_seeds(runs[measure].tolist())
    if found.deviation is None:
        return cell_of(runs.iloc[0], measure)
    interval = f" [{found.interval.low:.1f}, {found.interval.high:.1f}]" if found.interval else ""
    return f"{found.mean:.1f} ± {found.deviation:.1f}{interval}"


def _identity(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the columns that identify a row, as text; empty where a row has no tier or setting."""
    tier, setting = (frame[name].map(shown).astype(str) for name in ("tier", "setting"))
    return {"Task": frame["task"], "Tier": tier, "Method": frame["method"], "Setting": setting}


def _names(frame: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return each row's method with its setting, and its task with its tier."""
    people = _identity(frame)
    method, task = (people[one] + " " + people[other] for one, other in (("Method", "Setting"), ("Task", "Tier")))
    return method.str.strip(), task.str.strip()


def examples(study: Study, runs: Sequence[Run], questions: int = 2, sample: int = 0) -> pd.DataFrame:
    """Return answers to the same questions, with the right answer and both matches, of the runs like the first one.

    These are the runs with its task and seed.
    """
    rows = []
    for run in like_first(runs):
        answers = study.answers(run, "exact_match") or []
        items = {item.question.id: item for item in study.benign(run).data.test[:questions]}
        rows += [{"question": items[mark.question].question.prompt, "right": " | ".join(items[mark.question].golds),
                  "run": str(run), "answer": answer.text, "strict": mark.strict, "lenient": mark.lenient}
                 for answer, mark in zip(answers, study.benign(run).marks(answers), strict=True)
                 if mark.question in items and mark.sample == sample]
    columns = ["question", "right", "run", "answer", "strict", "lenient"]
    return pd.DataFrame(rows, columns=columns).sort_values("question", kind="stable")


def sizes(study: Study) -> pd.DataFrame:
    """Count the rows trained on and the questions per task and tier, with notes on problems in the task's files."""
    rows = []
    for name, run in first_runs(study).items():
        task = study.benign(run)
        notes = "; ".join(f"{count} {note}" for note, count in task.data.notes.items())
        rows.append({"task": name, "train": task.spec_of(run).plain.rows.count, "questions": len(task.data.test),
                     "samples": task.samples, "notes": notes})
    return pd.DataFrame(rows, columns=["task", "train", "questions", "samples", "notes"])


def opswap_answers(study: Study) -> pd.DataFrame:
    """Return the types of answers in each tier's test set, in percent, and the share of the most common answer."""
    rows = []
    for name, run in first_runs(study).items():
        if study.benign(run).tier is None:
            continue
        answers = pd.Series([item.golds[0] for item in study.benign(run).data.test])
        common = answers.value_counts(normalize=True)
        rows.append({"task": name, "whole %": 100 * (~answers.str.contains("/")).mean(),
                     "fractions %": 100 * answers.str.contains("/").mean(),
                     "negative %": 100 * answers.str.startswith("-").mean(), "different answers": answers.nunique(),
                     "commonest": common.index[0], "its share %": 100 * common.iloc[0]})
    return pd.DataFrame(rows, columns=["task", "whole %", "fractions %", "negative %", "different answers", "commonest",
                                       "its share %"])


def first_runs(study: Study) -> dict[str, Run]:
    """Return one run of each task and tier; all runs of a task share its data."""
    firsts: dict[str, Run] = {}
    for run in study.runs("benign"):
        firsts.setdefault(run.task, run)
    return firsts


def learnt(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare each trained run with the untrained model: percentage points, and whether the 95% intervals are disjoint.

    Strict matches, which also require the form of an answer, come first, then lenient ones. Runs without an untrained
    run of the same task, tier and seed are left out.
    """
    untrained = frame["method"] == UNTRAINED
    both = frame[~untrained].merge(frame[untrained], on=["task", "tier", "seed"], suffixes=("", "_before"))
    found = []
    for match, measure in MATCHES.items():
        above = both[f"{measure}_low"] > both[f"{measure}_high_before"]
        found.append(pd.DataFrame({"Match": match} | _identity(both) | {
            "Seed": both["seed"], "Points over untrained": both[measure] - both[f"{measure}_before"],
            "Learnt": above.map({True: "yes", False: "not shown"}).astype(str)}))
    return pd.concat(found, ignore_index=True)


def matches_by_method(frame: pd.DataFrame) -> Figure:
    """Plot strict exact match of each run with its 95% interval over questions: one panel per task and tier."""
    if frame.empty:
        return nothing("No run of a benign task is finished.")
    methods, names = _names(frame)
    order = list(dict.fromkeys(methods))
    tasks = list(dict.fromkeys(names))
    figure, axes = panels(len(tasks), (2.6, 0.45 * len(order)), around=(1.6, 1.2), grid="x", sharex=True, sharey=True)
    for axis, task in zip(axes, tasks, strict=True):
        runs, who = frame[names == task], methods[names == task]
        nth, several = runs.groupby(who).cumcount(), runs["seed"].nunique()
        for row, name, seed in zip(runs.to_dict("records"), who, nth, strict=True):
            mark(axis, row, "exact_match", order.index(name) + 0.12 * (seed - (several - 1) / 2), GENERAL)
        axis.set_title(task)
        rows_of_percent(axis, order)
    figure.supxlabel("exact match, % of answers asked for (bars: 95% intervals)", fontsize="medium")
    return figure


def save(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write `benign.{csv,md,tex}`, one row per run, and `benign_by_tier` and `benign_seeds` in the same formats."""
    tiers, means = by_tier(frame), seeds(frame)
    dashed = means.round(2).astype(object).where(means.notna(), DASH)
    return [*result_tables.write(frame, readable(frame), folder, "benign"),
            *result_tables.write(tiers, tiers, folder, "benign_by_tier"),
            *result_tables.write(means, dashed, folder, "benign_seeds")]
