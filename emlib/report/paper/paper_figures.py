"""The paper's figures, from its numbers, from ours, or from both on the same axes; and three that it does not have.

Each function takes averaged frames (`averages.over_datasets`) by the name of their source. Points are settings, a line
joins a method's sweep, bars are 95% intervals, black and grey markers are models without a defense. Methods differ in
colour, marker and line (`looks`), so they can be distinguished in greyscale; a second source has hollow markers. The
figures are sized for one column of a paper and saved by `plots.save`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emlib.config import BASELINES
from emlib.report.figures.labels import Label, place
from emlib.report.figures.looks import darkened, lines_of, look_of
from emlib.report.figures.plots import panels, rows_of_percent, spans
from emlib.report.paper.paper_tables import SYMBOLS, label
from emlib.report.paper.published import INTERLEAVING

Sources = Mapping[str, pd.DataFrame]
COLUMN = 3.35  # inches, the width of a column
TEXT = 7       # points
CLOSE = 0.12   # fraction of an axis: the markers of a sweep that are closer than this share one label
PANELS = 4     # per row of the figure by question
SETTING = 5.5  # font size in points of the settings next to the markers
NOTE = 55      # characters in a line below an axis
STYLE: Any = {"font.size": TEXT, "axes.labelsize": TEXT, "xtick.labelsize": TEXT, "ytick.labelsize": TEXT,
              "legend.fontsize": TEXT - 0.5, "legend.frameon": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
              "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
              "grid.alpha": 0.25, "grid.linewidth": 0.5, "figure.constrained_layout.use": True}
AXES = {"general_misaligned": "general misalignment, %", "general_incoherent": "general incoherence, %",
        "in_domain_misaligned": "in-domain misalignment, %", "in_domain_incoherent": "in-domain incoherence, %",
        "cost": "extra cost of the training, % (log scale)"}


def coherence(sources: Sources) -> Figure:
    """Plot Figure 1(a): emergent misalignment against incoherence, for each amount of interleaved data."""
    return _tradeoff(sources, "general_incoherent", INTERLEAVING)


def narrow(sources: Sources) -> Figure:
    """Plot Figure 1(b): emergent misalignment against what is learnt in the narrow domain."""
    return _tradeoff(sources, "in_domain_misaligned",
                     ("kl", "ldifs", "persona_vector", "inoculation", "interleaving++"))


def _tradeoff(sources: Sources, x: str, methods: Sequence[str]) -> Figure:
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(COLUMN, COLUMN))
        chosen = {name: frame[frame["method"].isin([*methods, "misaligned", "untrained"])]
                  for name, frame in sources.items()}
        for index, frame in enumerate(chosen.values()):
            _draw(axis, frame, x, "general_misaligned", hollow=index > 0)
        _finish(figure, axis, chosen, x)
        place(axis, [each for frame in chosen.values() for each in _settings(axis, frame, x)], SETTING)
    return figure


def pareto(sources: Sources) -> Figure:
    """Plot general against in-domain misalignment of every method and setting, and the Pareto front.

    For a point on the front (ringed, joined, and named) no other point of that source is at least as good on both axes
    and better on one. Baselines are shown for reference and are not on the front.
    """
    x, y = "in_domain_misaligned", "general_misaligned"
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(COLUMN, COLUMN * 1.12))
        labels: list[Label] = []
        for index, frame in enumerate(sources.values()):
            _draw(axis, frame, x, y, hollow=index > 0, joined=False)
            best = front(frame[~frame["method"].isin(BASELINES)])
            axis.plot(*_staircase(best[x].to_numpy(), best[y].to_numpy()), color="black", linewidth=0.8,
                      linestyle=":" if index else "-", zorder=1)
            axis.plot(best[x], best[y], "o", color="black", markersize=7.5, markerfacecolor="none",
                      markeredgewidth=0.7, zorder=1, label="Pareto front" if index == 0 else None)
            labels += [Label(run[x], run[y],
                             label(run["method"], run["setting"]) + _others(best, run, x, y),
                             darkened(run["method"])) for run in best.drop_duplicates([x, y]).to_dict("records")]
        _finish(figure, axis, sources, x)
        place(axis, labels, SETTING)
    return figure


def front(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the Pareto-optimal runs (less general, more in-domain misalignment), by in-domain misalignment.

    A run of which one of the shares is not known is none of them.
    """
    runs = runs.dropna(subset=["general_misaligned", "in_domain_misaligned"])
    general, narrow = (runs[name].to_numpy() for name in ("general_misaligned", "in_domain_misaligned"))
    no_worse = (general[:, None] <= general) & (narrow[:, None] >= narrow)  # (by, of)
    better = (general[:, None] < general) | (narrow[:, None] > narrow)
    return runs[~(no_worse & better).any(axis=0)].sort_values("in_domain_misaligned", kind="stable")


def _others(best: pd.DataFrame, run: Mapping[Any, Any], x: str, y: str) -> str:
    """Count the other runs of a front at the same point, for the label of the first."""
    more = int((best[x].eq(run[x]) & best[y].eq(run[y])).sum()) - 1
    return f" and {more} more" if more else ""


def _staircase(right: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the staircase through a front's points: the border of the region that they dominate."""
    return np.repeat(right, 2)[:-1], np.repeat(up, 2)[1:]


def cost_against_effect(sources: Sources) -> Figure:
    """Plot general misalignment against the extra cost of training (`cost`, in percent of plain fine-tuning).

    Runs whose cost is not known (NaN) have no point; the axis names them.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(COLUMN, COLUMN))
        for index, frame in enumerate(sources.values()):
            defended = frame[~frame["method"].isin(BASELINES)]
            _draw(axis, defended.dropna(subset="cost"), "cost", "general_misaligned", hollow=index > 0)
            for run in frame[frame["method"] == "misaligned"].to_dict("records"):
                axis.axhline(run["general_misaligned"], color="0.45", linewidth=0.8, linestyle="--" if index else "-",
                             zorder=0, label="Misaligned" if index == 0 else None)
        axis.set_xscale("symlog", linthresh=1, linscale=0.5)
        spent = pd.concat([pd.Series([0.0]), *(frame["cost"].dropna() for frame in sources.values())])
        most = max(1.0, 1.25 * spent.max())
        ticks = [tick for tick in (0, 1, 5, 20, 50, 100, 200, 1000) if tick <= most]
        axis.set_xticks(ticks, [f"{tick}" for tick in ticks], minor=False)
        axis.minorticks_off()
        axis.set_xlim(-0.25, most)
        _finish(figure, axis, sources, "cost")
    return figure


def _unmeasured(sources: Sources, x: str) -> str:
    """Name the methods, or some of their settings, without a point, for the axis; empty if there are none."""
    names: dict[str, None] = {}
    for frame in sources.values():
        defended = frame[~frame["method"].isin(BASELINES)]
        names |= dict.fromkeys(_named(defended, defended[[x, "general_misaligned"]].isna().any(axis=1)))
    return _note(f"not known, and without a point: {'; '.join(names)}") if names else ""


def _fewer_seeds(sources: Sources) -> str:
    """Name the points that are means over fewer seeds than others, for the axis; empty if there are none."""
    marks = [f"{mark.strip(' ()')}: {'; '.join(_named(frame, frame['fewer'] == mark))}" for frame in sources.values()
             if "fewer" in frame for mark in frame["fewer"].unique() if mark]
    return "".join(map(_note, marks))


def _named(frame: pd.DataFrame, chosen: pd.Series) -> list[str]:
    """Name the chosen runs: by the method alone if it is all of its runs."""
    names = []
    for method, runs in frame.groupby("method", sort=False):
        settings = runs.loc[chosen[runs.index], "setting"]
        names += [label(str(method))] if len(settings) == len(runs) else [
            label(str(method), setting) for setting in settings]
    return names


def _note(text: str) -> str:
    """Return a remark in brackets, below an axis' label and no wider than the column."""
    return "\n" + textwrap.fill(f"({text})", NOTE)


def by_question(shares: pd.DataFrame) -> Figure:
    """Plot the misaligned answers of each method (panel) to each question (row), with 95% intervals of the answers.

    `shares` has the columns question, method, percent, low, high. Questions are sorted by the first method's share.
    """
    methods = list(dict.fromkeys(shares["method"]))
    first = shares[shares["method"] == methods[0]].sort_values("percent", ascending=False, kind="stable")
    questions = list(first["question"])
    with plt.rc_context(STYLE):
        figure, axes = panels(
            len(methods), (1.25, 0.4 + 0.16 * len(questions)), around=(0.4 + 0.055 * max(map(len, questions)), 0.4),
            columns=PANELS, grid="", sharex=True, sharey=True)
        for axis, method in zip(axes, methods, strict=True):
            colour, marker, _ = look_of(method)
            rows = shares[shares["method"] == method].set_index("question").reindex(questions)
            bars = spans(rows.rename(columns={"low": "percent_low", "high": "percent_high"}), "percent")
            axis.errorbar(rows["percent"], np.arange(len(rows)), xerr=bars, marker=marker, linestyle="none",
                          color=colour, markersize=3, elinewidth=0.7, capsize=1.5)
            axis.set_title(label(method), fontsize=TEXT)
        rows_of_percent(axes[0], questions)
        figure.supxlabel("misaligned answers, %", fontsize=TEXT)
    return figure


def reward_curves(log: pd.DataFrame, *, window: int = 10) -> Figure:
    """Plot Figures 2 and 3: the mean reward of GRPO at each step, one line per condition.

    `log` has the columns step, reward, method, setting, seed. Lines are means over `window` steps and over seeds, up to
    the last step that all seeds have reached; with several seeds a band shows the mean's standard error on both sides.
    The paper has these curves only as pictures, so its numbers cannot be drawn. Figure 2 has the methods without a
    persona vector, Figure 3 those with one. The settings of a method differ in their dashes.
    """
    groups = log.groupby(["method", "setting"], sort=False, dropna=False)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(COLUMN, COLUMN * 0.75))
        looks = lines_of([str(method) for (method, _), _ in groups])
        for ((method, setting), steps), (colour, line) in zip(groups, looks, strict=True):
            seeds = steps.pivot(index="step", columns="seed", values="reward")
            reached = steps.groupby("seed")["step"].max().min()
            smooth = seeds.loc[:reached].rolling(window, min_periods=1).mean()
            mean, error = smooth.mean(axis=1, skipna=False), smooth.sem(axis=1, skipna=False)
            axis.plot(mean.index, mean, color=colour, linestyle=line, linewidth=1.2,
                      label=label(str(method), setting, SYMBOLS | {"kl": "β"}))
            if seeds.shape[1] > 1:
                axis.fill_between(mean.index, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
        axis.set(xlabel="GRPO step", ylabel=f"mean reward over up to {window} steps")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper center", ncols=2, handlelength=3)
    return figure


def _draw(axis: Axes, frame: pd.DataFrame, x: str, y: str, *, hollow: bool, joined: bool = True) -> None:
    """Plot each method of a source; the legend has the name of a method once, beside the first source that has it."""
    known = axis.get_legend_handles_labels()[1]
    for method, runs in frame.groupby("method", sort=False):
        name = label(str(method))
        colour, marker, line = look_of(str(method))
        runs = runs.dropna(subset=[x, y]).sort_values("setting")
        if runs.empty:
            continue
        axis.errorbar(runs[x], runs[y], yerr=spans(runs, y), xerr=spans(runs, x) if f"{x}_low" in runs else None,
                      marker=marker, color=colour, markersize=3.8, markerfacecolor="white" if hollow else colour,
                      markeredgewidth=0.7, elinewidth=0.6, linewidth=0.9, linestyle=line if joined else "none",
                      label=name if name not in known else None, zorder=4 if method in BASELINES else 3)


def _finish(figure: Figure, axis: Axes, sources: Sources, x: str) -> None:
    """Set scales, labels and the legend. Shares near zero matter most, so the vertical axis has a square-root scale."""
    axis.set_yscale("function", functions=(lambda share: np.sqrt(np.clip(share, 0, None)), np.square))
    top = max(frame["general_misaligned_high"].max() for frame in sources.values())
    axis.set_ylim(0, min(104.0, 1.12 * top + 0.5))
    axis.set_yticks([tick for tick in (0, 0.5, 2, 5, 10, 20, 40, 60, 80, 100) if tick <= axis.get_ylim()[1]])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set(xlabel=AXES[x] + _unmeasured(sources, x) + _fewer_seeds(sources),
             ylabel=f"{AXES['general_misaligned']} (square-root scale)")
    handles, names = axis.get_legend_handles_labels()
    for index, source in enumerate(sources if len(sources) > 1 else ()):
        handles.append(axis.plot([], [], "o", color="0.3", markersize=3.8,
                                 markerfacecolor="white" if index else "0.3")[0])
        names.append(source)
    figure.legend(handles, names, loc="outside upper center", ncols=3, columnspacing=0.5, handletextpad=0.3,
                  handlelength=1.7)


def _settings(axis: Axes, frame: pd.DataFrame, x: str) -> list[Label]:
    """Label each marker with its setting ("5%", "λ=0.1"); a sweep whose markers nearly coincide gets one label."""
    labels = []
    for method, runs in frame.dropna(subset=["setting", x, "general_misaligned"]).groupby("method", sort=False):
        runs = runs.sort_values("setting")
        numbers = [label(str(method), setting).partition(", ")[2] for setting in runs["setting"]]
        points = axis.transAxes.inverted().transform(axis.transData.transform(runs[[x, "general_misaligned"]]))
        if len(runs) > 1 and np.ptp(points, axis=0).max() < CLOSE:
            numbers = [f"{numbers[0]} to {numbers[-1].rpartition('=')[2]}", *[""] * (len(runs) - 1)]
        labels += [Label(left, up, number, darkened(str(method))) for left, up, number in
                   zip(runs[x], runs["general_misaligned"], numbers, strict=True) if number]
    return labels
