"""Standard benchmarks on each run of a profile: `python -m emlib.report.panel demo --tasks=mmlu_0_shot,truthfulqa`.

What is in the store is not computed again. docs/panel.md has more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from emlib.core.errors import EmlibError, StoreError, ends_with_message
from emlib.core.progress import say
from emlib.evaluation.panel import load_tasks
from emlib.report.figures import panel as figures
from emlib.report.figures import plots
from emlib.report.tables import panel, result_tables
from emlib.study.runs import Run
from emlib.study.study import Study, open_study


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
        raise StoreError(f"No run of profile '{study.name}' is trained. Run `make reproduce PROFILE={study.name}` "
                         "first: benchmarks train nothing.")
    return found, len(every) - len(found)


def write(study: Study) -> list[Path]:
    """Write `panel.csv`, its tables, and the figure of results against general misalignment; nothing without results.

    The figure needs runs with verdicts.
    """
    frame = panel.numbers(study)
    if frame.empty:
        return []
    written = panel.save(study, frame)
    results = [result for run in study.runs() if (result := study.result(run)) is not None]
    if results:
        figure = figures.against_misalignment(frame, result_tables.numbers(results))
        written += plots.save(figure, study.folder / "figures", "panel")
        plt.close(figure)
    return written


@ends_with_message(status=2)
def main(arguments: list[str] | None = None) -> None:
    """Run the command line: print the files written, or one message, with the exit status 2."""
    parser = argparse.ArgumentParser(prog="make panel", description="Run standard benchmarks on a study's models.")
    parser.add_argument("profile")
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
