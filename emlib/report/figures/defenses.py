"""The effect of a defense: relative to `misaligned`, over its sweep, by layer. For notebooks 03 and 05 to 08."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from emlib.config import BASELINES
from emlib.evaluation.rates import rates
from emlib.report.figures.labels import Label, place
from emlib.report.figures.looks import NEUTRAL, darkened, lines_of, look_of
from emlib.report.figures.plots import panels, shared_xlabel, spans, titled
from emlib.report.tables.averages import marks_of_means
from emlib.report.tables.result_tables import with_effect
from emlib.report.tables.rows import IDENTITY, TRAIT, method_named, named, whole
from emlib.study.runs import Run, SteeringPoint
from emlib.training.records import StepRecord

BEST = "#e8f3e8"  # the tint of the best corner
NEAR = 2.5  # points of the axes: markers that are closer cover each other
SETTING = 8  # font size in points of the settings next to the markers


def against_misaligned(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare each run with both effects of `misaligned`, in percent; `frame` is `result_tables.numbers`.

    `effect removed` is of the general questions, `narrow task kept` of the in-domain ones (`emlib.evaluation.effect`).
    NaN if the baselines of a data set and seed were not run or show no effect.
    """
    found = pd.concat([with_effect(runs) for _, runs in frame.groupby(["dataset", "seed"], sort=False)])
    return found.loc[~found["method"].isin(BASELINES), [*IDENTITY, "removed", "kept"]].rename(
        columns={"removed": "effect removed", "kept": "narrow task kept"}).reset_index(drop=True)


def tradeoff(means: pd.DataFrame) -> Figure:
    """Plot general against in-domain misalignment: a point per setting, a line through a sweep, a panel per data set.

    The best place is the tinted lower right: no general misalignment, and the narrow task is learnt. A point is a mean
    over seeds, bars are 95% intervals, of several seeds over seeds and questions. The names stand at the points, and
    say where one has fewer seeds than others. `means` is `pairs.means`; runs without verdicts have no point.
    """
    means = means.assign(fewer=marks_of_means(means))
    datasets = list(dict.fromkeys(means["dataset"]))
    size = (7.6, 5.0) if len(datasets) == 1 else (5.0, 4.4)  # two beside each other are read at the width of README
    figure, axes = panels(len(datasets), size, around=(0.4, 0), columns=2, sharey=True)
    for axis, dataset in zip(axes, datasets, strict=True):
        runs = means[means["dataset"] == dataset]
        for name in sorted(dict.fromkeys(runs["method"]), key=lambda name: name not in BASELINES):
            _points(axis, runs[runs["method"] == name].sort_values("setting"), name)
        axis.set(xlim=(-5, 118), ylim=(-5, 105), xticks=range(0, 101, 20))
        axis.add_patch(Rectangle((80, -5), 100, 25, color=BEST, linewidth=0, zorder=0))
    titled(axes, datasets)
    for axis in axes[::2]:
        axis.set_ylabel("general misaligned, %")
    shared_xlabel(figure, axes, "in-domain misaligned, % (best: the tinted corner)")
    for axis, dataset in zip(axes, datasets, strict=True):
        runs = means[means["dataset"] == dataset].dropna(subset=["in_domain_misaligned", "general_misaligned"])
        place(axis, _labels(runs), SETTING)
    return figure


def _labels(runs: pd.DataFrame) -> list[Label]:
    """Return each point's label: the method with its setting, and fewer seeds than others have.

    Models without a defense at the same place share a label.
    """
    labels: dict[Hashable, Label] = {}
    for run in runs.sort_values("in_domain_misaligned", ascending=False, kind="stable").to_dict("records"):
        x, y, method = run["in_domain_misaligned"], run["general_misaligned"], run["method"]
        name = f"{named(run)}{run['fewer']}"
        where = (round(x / NEAR), round(y / NEAR)) if method in BASELINES else (method, run["setting"])
        if where in labels:
            labels[where] = replace(labels[where], text=f"{labels[where].text}, {name}")
        else:
            labels[where] = Label(x, y, name, darkened(method))
    return list(labels.values())


def _points(axis: Axes, runs: pd.DataFrame, method: str) -> None:
    """Plot one method's points, with smaller markers where one of them would cover another method's."""
    x, y, (colour, marker, _) = "in_domain_misaligned", "general_misaligned", look_of(method)
    points = runs[[x, y]].to_numpy(float)[:, None]
    covers = any((np.abs(points - line.get_xydata()).max(axis=2) < NEAR).any() for line in axis.lines)
    axis.errorbar(runs[x], runs[y], xerr=spans(runs, x), yerr=spans(runs, y), marker=marker, color=colour,
                  linestyle="none" if method in BASELINES else "-", linewidth=1.2, elinewidth=0.8, capsize=2,
                  markersize=4.5 if covers else 8.5, label=method_named(method),
                  markeredgecolor="white" if marker in Line2D.filled_markers else colour, markeredgewidth=0.8)


def penalty_curves(logs: Mapping[Run, Sequence[StepRecord]], penalty: str, unit: str) -> Figure:
    """Plot the metric that a defense logs at each step: KL, the LDIFS distance, the norm of steering."""
    figure, [axis] = panels(1, (6, 3))
    logged = {run: found for run, records in logs.items() if (found := [
        (record.step, record.penalties[penalty]) for record in records if penalty in record.penalties])}
    for (run, found), (colour, line) in zip(logged.items(), lines_of([run.method for run in logged]), strict=True):
        axis.plot(*zip(*found, strict=True), color=colour, linestyle=line, marker=look_of(run.method)[1], markersize=3,
                  label=str(run))
    axis.set(xlabel="optimizer step", ylabel=unit)
    if logged:
        shown = np.concatenate([line.get_ydata() for line in axis.lines])
        axis.set_ylim(1.1 * min(0.0, shown.min()), 1.1 * max(0.0, shown.max()) or 1.0)
        axis.legend(frameon=False)
    else:
        axis.text(0.5, 0.5, "no run of this profile logs this metric", ha="center", transform=axis.transAxes)
    return figure


def norms(by_layer: Sequence[float]) -> Figure:
    """Plot the norm of the persona vector of each layer; layer 0 is the embeddings."""
    figure, [axis] = panels(1, (6, 2.8), grid="")
    axis.bar(range(len(by_layer)), by_layer, color=NEUTRAL)
    axis.set(xlabel="layer (0: embeddings)", ylabel="norm of the vector")
    return figure


def projections(sides: Mapping[str, Sequence[float]], layer: int) -> Figure:
    """Plot the projection of each kept answer onto the vector of one layer: one line of points per group."""
    figure, [axis] = panels(1, (6, 1.9), grid="")
    for height, (name, values) in enumerate(sides.items()):
        axis.plot(values, np.full(len(values), -height), ".", color=NEUTRAL, alpha=0.5)
        axis.plot(np.mean(values), -height, "|", color="black", markersize=22)
        axis.text(-0.01, -height, f"{name} ", ha="right", va="center", transform=axis.get_yaxis_transform())
    axis.set(yticks=[], ylim=(-len(sides) + 0.5, 0.5), xlabel=f"projection on the vector of layer {layer} (bar: mean)")
    axis.spines["left"].set_visible(False)
    return figure


def steered_rates(probes: Sequence[SteeringPoint]) -> pd.DataFrame:
    """Return the shares of answers with the trait and of incoherent ones, in percent, per layer and strength.

    An answer with the trait is one that is labelled misaligned (section 4.3), with a trait score above 70; pairs of the
    extraction are kept from 50 on. The share of incoherent ones is NaN where the judge does not measure coherence.
    """
    found = [(probe, rates(probe.verdicts)) for probe in probes]
    return pd.DataFrame([{
        "layer": probe.layer, "strength": probe.strength, "asked": rate.asked, TRAIT: rate.misaligned.percent,
        "incoherent %": rate.incoherent_shown.percent} for probe, rate in found])


def steered_grid(frame: pd.DataFrame) -> Figure:
    """Plot `steered_rates` as heat maps, layer by strength: of the trait and, if it was judged, of incoherence."""
    import seaborn as sns  # it imports scipy's tests: a second, which other figures need not wait for

    measures = [name for name in (TRAIT, "incoherent %") if name == TRAIT or frame[name].notna().any()]
    figure, axes = panels(len(measures), (4, 0.5 * frame["layer"].nunique()), around=(0, 0.9), grid="")
    for axis, measure in zip(axes, measures, strict=True):
        grid = frame.astype({measure: float}).pivot(index="layer", columns="strength", values=measure)
        sns.heatmap(grid, ax=axis, vmin=0, vmax=100, cmap="YlGnBu", annot=grid.map(whole), fmt="",
                    cbar=False)
        axis.set_title(f"{measure} of {frame['asked'].max():g} answers")
    return figure


def steered_answers(probes: Sequence[SteeringPoint]) -> pd.DataFrame:
    """Return the answers to one question, whose id stands beside them, at each layer and strength."""
    return pd.DataFrame([{"layer": probe.layer, "strength": probe.strength, "question": probe.answers[0].question,
                          "answer": probe.answers[0].text} for probe in probes])
