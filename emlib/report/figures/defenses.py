"""The effect of a defense: relative to `misaligned`, over its sweep, by layer. For notebooks 03 and 05 to 08."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from emlib.config import BASELINES
from emlib.evaluation.rates import rates
from emlib.report.figures.labels import Label, place
from emlib.report.figures.plots import PALETTE, legend, panels, spans
from emlib.report.paper.paper_figures import look_of
from emlib.report.tables.averages import over_datasets
from emlib.report.tables.result_tables import with_effect
from emlib.report.tables.rows import IDENTITY
from emlib.study.runs import SteeringPoint
from emlib.training.records import StepRecord

MARKERS = "oDv^<>PX"
BEST = "#e8f3e8"  # the tint of the best corner
SETTING = 8  # font size in points of the settings next to the markers
REFERENCES = {"untrained": ("0.55", "s"), "aligned": ("0.35", "P"), "misaligned": ("black", "X")}  # as LOOKS


def against_misaligned(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare each run with both effects of `misaligned`, in percent; `frame` is `result_tables.numbers`.

    `effect removed` is of the general questions, `narrow task kept` of the in-domain ones (`emlib.evaluation.effect`).
    NaN if the baselines of a data set and seed were not run or show no effect.
    """
    found = pd.concat([with_effect(runs) for _, runs in frame.groupby(["dataset", "seed"], sort=False)])
    return found.loc[~found["method"].isin(BASELINES), [*IDENTITY, "removed", "kept"]].rename(
        columns={"removed": "effect removed", "kept": "narrow task kept"}).reset_index(drop=True)


def tradeoff(frame: pd.DataFrame) -> Figure:
    """Plot general against in-domain misalignment: a point per setting, a line through a sweep, a panel per data set.

    The best place is the tinted lower right: no general misalignment, and the narrow task is learnt. A point is a mean
    over seeds, bars are 95% intervals over questions, small numbers the settings. In a single panel the names stand at
    the points; several panels share a legend. `frame` is `result_tables.numbers`; runs without verdicts have no point.
    """
    datasets = list(dict.fromkeys(frame["dataset"]))
    single = len(datasets) == 1
    figure, axes = panels(len(datasets), (5.4, 4.4) if single else (4.2, 4.8), around=(1.2, 0), sharey=True)
    of_panels = [over_datasets(frame[frame["dataset"] == dataset], same_questions=True) for dataset in datasets]
    for axis, dataset, runs in zip(axes, datasets, of_panels, strict=True):
        for name in dict.fromkeys([*REFERENCES, *runs["method"]]):
            _points(axis, runs[runs["method"] == name].sort_values("setting"), name)
        axis.set(title=dataset, xlim=(-5, 105), ylim=(-5, 105))
        axis.add_patch(Rectangle((80, -5), 25, 25, color=BEST, linewidth=0, zorder=0))
    axes[0].set_ylabel("general misaligned, %")
    figure.supxlabel("in-domain misaligned, % (best: the tinted corner)", fontsize="medium")
    if not single:
        legend(figure, 3)
    for axis, runs in zip(axes, of_panels, strict=True):
        place(axis, _labels(runs.dropna(subset=["in_domain_misaligned", "general_misaligned"]), named=single), SETTING)
    return figure


def _labels(runs: pd.DataFrame, *, named: bool) -> list[Label]:
    """Return each point's label: its setting, and if `named` the method, which the other points of a sweep lack."""
    labels, seen = [], set[str]()
    for run in runs.sort_values("in_domain_misaligned", ascending=False, kind="stable").to_dict("records"):
        name = "no defense" if run["method"] == "misaligned" else run["method"]
        words = [name] if named and run["method"] not in seen else []
        words += [] if pd.isna(run["setting"]) else [f"{run['setting']:g}"]
        seen.add(run["method"])
        if words:
            labels.append(Label(run["in_domain_misaligned"], run["general_misaligned"], " ".join(words),
                                look(run["method"])[0]))
    return labels


def look(method: str) -> tuple[str, str]:
    """Return a method's colour and marker: those of the paper's figures, with baselines that stand out."""
    return REFERENCES[method] if method in REFERENCES else look_of(method)[:2]


def _points(axis: Axes, runs: pd.DataFrame, method: str) -> None:
    if runs.empty:
        return
    x, y, (colour, marker) = "in_domain_misaligned", "general_misaligned", look(method)
    axis.errorbar(runs[x], runs[y], xerr=spans(runs, x), yerr=spans(runs, y), marker=marker, color=colour,
                  linestyle="none" if method in REFERENCES else "-", linewidth=1.2, elinewidth=0.8, capsize=2,
                  markersize=7, label=method)


def penalty_curves(logs: Mapping[str, Sequence[StepRecord]], penalty: str, unit: str) -> Figure:
    """Plot the metric that a defense logs at each step: KL, the LDIFS distance, the norm of steering."""
    figure, [axis] = panels(1, (6, 3))
    for (name, records), colour, marker in zip(logs.items(), cycle(PALETTE), cycle(MARKERS), strict=False):
        logged = [(record.step, record.penalties[penalty]) for record in records if penalty in record.penalties]
        if logged:
            axis.plot(*zip(*logged, strict=True), color=colour, marker=marker, markersize=3, label=name)
    axis.set(xlabel="optimizer step", ylabel=unit)
    if axis.lines:
        shown = np.concatenate([line.get_ydata() for line in axis.lines])
        axis.set_ylim(1.1 * min(0.0, shown.min()), 1.1 * max(0.0, shown.max()) or 1.0)
        axis.legend(frameon=False)
    else:
        axis.text(0.5, 0.5, "no run of this profile logs this metric", ha="center", transform=axis.transAxes)
    return figure


def norms(by_layer: Sequence[float]) -> Figure:
    """Plot the norm of the persona vector of each layer; layer 0 is the embeddings."""
    figure, [axis] = panels(1, (6, 2.8), grid="")
    axis.bar(range(len(by_layer)), by_layer, color=PALETTE[0])
    axis.set(xlabel="layer (0: embeddings)", ylabel="norm of the vector")
    return figure


def projections(sides: Mapping[str, Sequence[float]], layer: int) -> Figure:
    """Plot the projection of each kept answer onto the vector of one layer: one line of points per group."""
    figure, [axis] = panels(1, (6, 1.9), grid="")
    for height, ((name, values), colour, marker) in enumerate(zip(sides.items(), PALETTE, MARKERS, strict=False)):
        axis.plot(values, np.full(len(values), -height), marker, color=colour, alpha=0.5, linestyle="none")
        axis.plot(np.mean(values), -height, "|", color="black", markersize=22)
        axis.text(-0.01, -height, f"{name} ", ha="right", va="center", transform=axis.get_yaxis_transform())
    axis.set(yticks=[], ylim=(-len(sides) + 0.5, 0.5), xlabel=f"projection on the vector of layer {layer} (bar: mean)")
    axis.spines["left"].set_visible(False)
    return figure


def steered_rates(probes: Sequence[SteeringPoint]) -> pd.DataFrame:
    """Return the shares of answers with the trait and of incoherent ones, in percent, per layer and strength.

    The second is NaN where the judge does not measure coherence.
    """
    found = [(probe, rates(probe.verdicts)) for probe in probes]
    return pd.DataFrame([{
        "layer": probe.layer, "strength": probe.strength, "asked": rate.asked, "trait %": rate.misaligned.percent,
        "incoherent %": rate.incoherent_shown.percent} for probe, rate in found])


def steered_grid(frame: pd.DataFrame) -> Figure:
    """Plot `steered_rates` as heat maps, layer by strength: of the trait and, if it was judged, of incoherence."""
    measures = [name for name in ("trait %", "incoherent %") if name == "trait %" or frame[name].notna().any()]
    figure, axes = panels(len(measures), (4, 0.5 * frame["layer"].nunique()), around=(0, 0.9), grid="")
    for axis, measure in zip(axes, measures, strict=True):
        grid = frame.astype({measure: float}).pivot(index="layer", columns="strength", values=measure)
        sns.heatmap(grid, ax=axis, vmin=0, vmax=100, cmap="YlGnBu", annot=True, fmt=".0f", cbar=False)
        axis.set_title(f"{measure} of {frame['asked'].max():g} answers")
    return figure


def steered_answers(probes: Sequence[SteeringPoint]) -> pd.DataFrame:
    """Return the answers to one question, whose id stands beside them, at each layer and strength."""
    return pd.DataFrame([{"layer": probe.layer, "strength": probe.strength, "question": probe.answers[0].question,
                          "answer": probe.answers[0].text} for probe in probes])
