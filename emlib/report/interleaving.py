"""Results of interleaving: the added rows, and Figure 1(a) of the paper for a profile."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlib.config import BASELINES
from emlib.data.mixing import interleave, rows_to_add
from emlib.evaluation import effect
from emlib.report.figures.defenses import SETTING
from emlib.report.figures.labels import Label, place
from emlib.report.figures.looks import darkened, look_of
from emlib.report.figures.plots import legend, panels, spans, titled
from emlib.report.tables.averages import marks_of_means
from emlib.report.tables.rows import method_named
from emlib.study import pool
from emlib.study.runs import Run
from emlib.study.study import Study

GENERAL = "general_misaligned"
AXES = (("general_incoherent", "general incoherent, %"), ("in_domain_misaligned", "in-domain misaligned, %"))
COLUMNS = len(AXES)  # of panels: those of a data set, or two data sets beside each other


def added(study: Study, runs: Sequence[Run], count: int = 5) -> pd.DataFrame:
    """Return the first rows that each run added, with rank, score and reason; on-policy runs show their own answers."""
    return pd.DataFrame([(str(run), row.rank, row.score, row.reason, row.example.prompt, row.response)
                         for run in runs for row in pool.added(study, run)[:count]],
                        columns=["run", "rank", "score", "reason", "prompt", "answer"])


def pattern(rows: int, fractions: Sequence[float]) -> pd.DataFrame:
    """Show the positions of added rows (`#`) in an epoch of `rows` fine-tuning rows (`.`)."""
    epochs = {fraction: interleave([0] * rows, [1] * rows_to_add(rows, fraction)) for fraction in fractions}
    return pd.DataFrame([(f"{fraction:g}", sum(epoch), "".join("#" if added else "." for added in epoch))
                         for fraction, epoch in epochs.items()], columns=["fraction", "added", "epoch"])


def with_fractions(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Return `result_tables.numbers`, or `pairs.means`, with a column `fraction`: 0 for runs without interleaving."""
    fractions = []
    for row in frame.to_dict("records"):
        setting = None if pd.isna(row["setting"]) else float(row["setting"])
        run = Run(row["model"], row["dataset"], row["method"], setting, 0)  # all seeds have one fraction
        rows = pool.added_step(study, run)
        fractions.append(0.0 if rows is None else rows.fraction)
    return frame.assign(fraction=fractions)


def against_misaligned(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare each run with `misaligned` of its data set and seed, and test whether their intervals are disjoint.

    Two overlapping 95% intervals do not show a difference; disjoint ones are a stricter test than the 5% level. Both
    are of single runs: they cover the choice of questions, and not the variation between seeds.
    """
    both = frame[frame["fraction"] > 0].merge(frame[frame["method"] == "misaligned"], on=["dataset", "seed"],
                                              suffixes=("", "_plain"))
    general, in_domain = "general_misaligned", "in_domain_misaligned"
    return pd.DataFrame({
        "data set": both["dataset"], "method": both["method"], "fraction": both["fraction"],
        "EM removed %": effect.reduction(both[general], both[f"{general}_plain"]),
        "general: apart": _apart(both, general),
        "narrow task kept %": effect.kept(both[in_domain], both[f"{in_domain}_plain"]),
        "in-domain: apart": _apart(both, in_domain), "incoherence: apart": _apart(both, "general_incoherent")})


def _apart(both: pd.DataFrame, measure: str) -> NDArray[np.str_]:
    """Return whether the interval of each run's measure and that of `misaligned` are disjoint, in words."""
    low, high, plain_low, plain_high = (both[f"{measure}_{end}"] for end in ("low", "high", "low_plain", "high_plain"))
    return np.select([low.isna() | plain_low.isna(), (high < plain_low) | (low > plain_high)],
                     ["not scored", "yes"], "intervals overlap")


def trade_offs(means: pd.DataFrame) -> Figure:
    """Plot Figure 1(a): general misalignment against general incoherence, one line per variant, a point per fraction.

    A second panel of each data set has the in-domain rate instead. A point is a mean over seeds, and bars are 95%
    intervals. `means` is `with_fractions` of `pairs.means`. Without a judge of coherence there is no first panel.
    """
    shown = [(measure, words) for measure, words in AXES if means[measure].notna().any()] or list(AXES)
    datasets = list(dict.fromkeys(means["dataset"]))
    places = list(product(datasets, shown))
    figure, axes = panels(len(places), (4.3, 4), around=(0.9, 0), columns=COLUMNS, sharey=True)
    for axis, (dataset, (measure, words)) in zip(axes, places, strict=True):
        _lines(axis, means[means["dataset"] == dataset], measure)
        axis.set_xlabel(words)
    titled(axes, [dataset for dataset, _ in places] if len(datasets) > 1 else [])
    for axis in axes[::COLUMNS]:
        axis.set_ylabel("general misaligned, %")
    legend(figure, 4)
    mixed = means.assign(fewer=marks_of_means(means))[means["fraction"] > 0]
    for axis, (dataset, (measure, _)) in zip(axes, places, strict=True):
        known = mixed[mixed["dataset"] == dataset].dropna(subset=[measure, GENERAL])
        place(axis, [Label(row[measure], row[GENERAL], f"{100 * row['fraction']:g}%{row['fewer']}",
                           darkened(row["method"])) for row in known.to_dict("records")], SETTING)
    return figure


def _lines(axis: Axes, runs: pd.DataFrame, measure: str) -> None:
    """Plot one data set's points: a line through each variant's fractions, and the baselines without one."""
    variants = dict.fromkeys(runs.loc[runs["fraction"] > 0, "method"])
    known = runs.dropna(subset=[measure, GENERAL]).sort_values("fraction", kind="stable")
    for name in dict.fromkeys(("aligned", "misaligned", *variants)):
        some, (colour, marker, _) = known[known["method"] == name], look_of(name)
        if len(some):
            axis.errorbar(some[measure], some[GENERAL], xerr=spans(some, measure), yerr=spans(some, GENERAL),
                          color=colour, marker=marker, linestyle="none" if name in BASELINES else "-", capsize=2,
                          linewidth=1, label=method_named(name))
