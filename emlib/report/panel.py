"""Standard benchmarks on each run of a profile: `python -m emlib.report.panel demo --tasks=mmlu_0_shot,truthfulqa`.

What is in the store is not computed again. Its results are a table, with a row for each run, task and metric, and a
figure of what defenses cost in capability. docs/panel.md has more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from emlib.core.commands import ends_with_message, profile_parser
from emlib.core.digests import keyed, of_value
from emlib.core.errors import EmlibError, StoreError
from emlib.core.files import write_text
from emlib.core.progress import say
from emlib.evaluation.panel import PanelTask, load_tasks
from emlib.evaluation.statistics import NORMAL
from emlib.report.figures import plots
from emlib.report.figures.looks import look_of
from emlib.report.figures.plots import legend, panels, spans
from emlib.report.tables import result_tables
from emlib.report.tables.rows import DASH, IDENTITY, identity_of, method_named, readable_identity, runs_of, with_error
from emlib.steps.measures import PanelResult
from emlib.store.artefacts import Artefact
from emlib.study.runs import Run
from emlib.study.study import Study, open_study

COLUMNS = [*IDENTITY, "task", "version", "limit", "scorer", "metric", "headline", "value", "stderr", "samples",
           "answers", "cut", "too_long", "log", "run_key", "variant"]
FILE = "panel.csv"


def evaluate(study: Study, tasks: Sequence[str], limit: int | None = None,
             methods: Sequence[str] | None = None) -> list[Path]:
    """Evaluate the trained runs of a study, or those of some methods, on tasks of inspect; return the files written.

    Tasks are loaded first, so that one that cannot be run here is refused before any model is loaded.

    Raises:
        StoreError: no run is trained.
        EmlibError: a task cannot be run, or it stopped. What is finished is kept and written.
    """
    runs, untrained = trained(study, methods)
    loaded = load_tasks(tasks, limit)
    steps = study.panel(runs, loaded)
    missing = [step for step in steps if study.found(step) is None]
    for task in loaded:
        say(f"{task.name} {task.version}: {task.samples} samples for each model")
    say(f"{len(runs)} runs, {len(loaded)} tasks: {len(missing)} of {len(steps)} evaluations are missing" + (
        f"; {untrained} runs are not trained and left out" if untrained else ""))
    try:
        study.need(steps)
    finally:
        written = write(study)
    return written


def trained(study: Study, methods: Sequence[str] | None) -> tuple[list[Run], int]:
    """Return the runs on narrow data whose adapter is in the store, or that need none, and the number of the others.

    Raises:
        StoreError: there is none.
    """
    every = study.runs(methods=methods)
    found = [run for run in every if study.task(run).adapter(run) is None or study.adapter(run) is not None]
    if not found:
        raise StoreError(f"No run of profile '{study.name}' is trained. Run `{study.command}` first: benchmarks train "
                         "nothing.")
    return found, len(every) - len(found)


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
            "variant": of_value(keyed(task))[:8] if names[_name(task)] > 1 else ""}
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


def against_misalignment(panel: pd.DataFrame, rates: pd.DataFrame) -> Figure:
    """Plot each run's result on a benchmark against its general misalignment, with 95% intervals: a panel each.

    `panel` is `numbers`, of which the main metrics are drawn, and `rates` is `result_tables.numbers`. Runs
    without both have no point. The best place is the upper left: capable, and not misaligned.
    """
    shown = panel[panel["headline"].astype(bool)].merge(
        rates.astype({"setting": float}), on=IDENTITY, how="inner")
    shown = shown[shown["general_misaligned"].notna()]
    tasks = shown.assign(of=[heading(row) for row in shown.to_dict("records")])
    names = list(dict.fromkeys(tasks["of"])) or ["no run has both"]
    figure, axes = panels(len(names), (3.6, 3.2), around=(1, 0.8), columns=3, sharex=True)
    for axis, name in zip(axes, names, strict=True):
        for method, of in tasks[tasks["of"] == name].groupby("method", sort=False):
            colour, marker, _ = look_of(str(method))
            axis.errorbar(of["general_misaligned"], of["value"].to_numpy(float), xerr=spans(of, "general_misaligned"),
                          yerr=NORMAL * of["stderr"].to_numpy(float), marker=marker, color=colour,
                          capsize=2, linestyle="none", label=method_named(str(method)))
        axis.set_xlim(-5, 105)
        axis.set_title(name, fontsize="medium")
    figure.supxlabel("general misaligned, % (bars: 95% intervals)", fontsize="medium")
    legend(figure, 4)
    return figure


def write(study: Study) -> list[Path]:
    """Write `panel.csv`, its tables, and the figure of results against general misalignment.

    Without results their files are removed. The figure needs runs with verdicts.
    """
    study.write_results()  # the table and the figure are of the profile that is recorded then
    frame = numbers(study)
    written = result_tables.write(frame, readable(frame), study.folder / "tables", "panel")
    results = study.finished()
    figure = against_misalignment(frame, result_tables.numbers(results)) if written and results else plots.nothing("")
    written += plots.save(figure, study.folder / "figures", "panel")
    plt.close(figure)
    if frame.empty:
        (study.folder / FILE).unlink(missing_ok=True)
        return written
    write_text(study.folder / FILE, frame.to_csv(index=False))
    return [study.folder / FILE, *written]


@ends_with_message(status=2)
def main(arguments: list[str] | None = None) -> None:
    """Run the command line: print the files written, or one message, with the exit status 2."""
    parser = profile_parser("make panel", "Run standard benchmarks on a study's models.")
    parser.add_argument("--tasks", default="", help="names of inspect_evals, package/name, or FILE.py@name; by commas")
    parser.add_argument("--limit", default="", help="ask only the first samples of each task, so many")
    parser.add_argument("--methods", default="", help="only the runs of these methods, by commas")
    asked = parser.parse_args(arguments)
    if asked.limit and not (asked.limit.isdecimal() and int(asked.limit)):
        raise EmlibError(f"LIMIT is '{asked.limit}'; expected a number of samples, such as 100.")
    for path in evaluate(open_study(asked.profile), _split(asked.tasks), int(asked.limit or 0) or None,
                         _split(asked.methods) or None):
        print(path)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    main()
