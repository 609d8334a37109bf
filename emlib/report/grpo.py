"""Reinforcement learning as tables and curves: the paper's Table 9 and Figures 2 and 3, from a profile's runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emlib.evaluation.rewards import advantages
from emlib.report.figures.looks import lines_of
from emlib.report.figures.plots import nothing, panels
from emlib.report.tables import result_tables
from emlib.report.tables.rows import shown, with_error
from emlib.study.runs import Run, RunResult
from emlib.training.rl.records import Completion, RlStep

MEASURES = {"train_accuracy": "Train acc %", "train_reward": "Train reward", "eval_accuracy": "Eval acc %",
            "eval_reward": "Eval reward"}
BOUNDS = {"exact": "[0, 3]", "approx": "[-2, 2]", "correct": "[-0.5, 3]", "numbers": "[0, 1.5]"}  # B.3
SHOWN = 2  # completions of a step
COLUMNS = ["model", "method", "setting", "seed", *MEASURES, "asked"]


def group(totals: Sequence[float]) -> pd.DataFrame:
    """Return one group's rewards and their advantages: one row per completion."""
    return pd.DataFrame({"completion": range(1, len(totals) + 1), "reward": totals, "advantage": advantages(totals)})


def numbers(results: Sequence[RunResult]) -> pd.DataFrame:
    """Return one row per run: accuracies in percent, NaN where nothing was trained."""
    frame = pd.DataFrame([asdict(result.run) | vars(result.rewards)
                          for result in results], columns=COLUMNS)
    for name in MEASURES:
        frame[name] = frame[name].astype(float) * (100 if name.endswith("accuracy") else 1)
    return frame


def by_condition(frame: pd.DataFrame) -> pd.DataFrame:
    """Return Table 9: one row per condition, each measure as "mean ± standard deviation" over seeds (n - 1).

    With one seed only the value is shown, and nothing of a measure that one of the seeds lacks.
    """
    rows = []
    for (method, setting), runs in frame.groupby(["method", "setting"], dropna=False, sort=False):
        rows.append({"Method": method, "Setting": shown(setting), "Seeds": len(runs)}
                    | {title: with_error(runs[name].mean(skipna=False), runs[name].std(skipna=False), 2)
                       for name, title in MEASURES.items()})
    return pd.DataFrame(rows)


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each value and the `window` - 1 before it; NaN is left out."""
    return pd.Series(values, dtype=float).rolling(window, min_periods=1).mean().tolist()


def curves(logs: Mapping[Run, Sequence[RlStep]], window: int = 10) -> Figure:
    """Plot Figures 2 and 3: training reward and accuracy per step (thin), and their moving average (bold)."""
    logs = {run: log for run, log in logs.items() if log}
    if not logs:
        return nothing("No run was trained.")
    figure, axes = panels(2, (4.5, 3.4))
    for (run, log), (colour, line) in zip(logs.items(), lines_of([run.method for run in logs]), strict=True):
        steps = [step.step for step in log]
        right = [np.nan if step.right is None else 100 * step.right * (1 - step.unscored) for step in log]  # of all
        for axis, values in zip(axes, ([np.nan if s.reward is None else s.reward for s in log], right), strict=True):
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axis.plot(steps, moving_average(values, window), label=run.condition, color=colour, linestyle=line,
                      linewidth=1.8)
    for axis, label in zip(axes, ("reward of a step's completions", "right, % of a step's completions"), strict=True):
        axis.set(xlabel="optimizer step", ylabel=f"{label}\n(bold: mean of up to {window} steps)")
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def last_steps(logs: Mapping[Run, Sequence[RlStep]]) -> pd.DataFrame:
    """Return the last step of each run's log: one row per run."""
    return pd.DataFrame([{
        "run": run.condition, "step": log[-1].step, "tokens a completion": log[-1].length, "cut %": 100 * log[-1].cut,
        "groups without spread %": 100 * log[-1].no_spread, "clipped %": 100 * log[-1].clipped,
        "KL, nats a token": "–" if log[-1].kl is None else f"{log[-1].kl:.4f}",
        "gap between sampler and loss, nats a token": f"{log[-1].gap:.1e}"}
        for run, log in logs.items() if log])


def parts(logs: Mapping[Run, Sequence[RlStep]]) -> pd.DataFrame:
    """Return the parts of the reward at each run's first and last step: mean and deviation over its completions."""
    ends = [(run.condition, step) for run, log in logs.items() for step in [*log[:1], *log[1:][-1:]]]
    return pd.DataFrame([{"run": name, "step": step.step} | {
        f"{part} {bounds}": "{:.2f} ± {:.2f}".format(*step.parts[part]) if part in step.parts else "–"
        for part, bounds in BOUNDS.items()} for name, step in ends])


def early_and_late(completions: Sequence[Completion]) -> pd.DataFrame:
    """Return the first completions of the first and of the last step that are kept, with the parts of their rewards."""
    steps = sorted({one.step for one in completions})
    shown = [one for step in (steps[:1] + steps[1:][-1:]) for one in [c for c in completions if c.step == step][:SHOWN]]
    return pd.DataFrame([asdict(one) | (one.parts or {}) for one in shown],
                        columns=["step", "question", "answer", "text", *BOUNDS, "reward", "right"])


def save(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the runs as `grpo.csv` and the conditions as `grpo.md` and `grpo.tex`; nothing without runs."""
    return result_tables.write(frame, by_condition(frame), folder, "grpo")
