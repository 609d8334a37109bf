"""Results of interleaving: the added rows, and Figure 1(a) of the paper for a profile."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emlib.data.mixing import interleave, rows_to_add
from emlib.evaluation import effect
from emlib.report.figures.defenses import SETTING, look
from emlib.report.figures.furniture import legend, panels, spans
from emlib.report.figures.labels import Label, place
from emlib.study import pool
from emlib.study.runs import Run
from emlib.study.study import Study

AXES = (("general_incoherent", "general incoherent, %"), ("in_domain_misaligned", "in-domain misaligned, %"))


def added(study: Study, runs: Sequence[Run], count: int = 5) -> pd.DataFrame:
    """Return the first rows that each run added, with rank, score and reason; on-policy runs show their own answers."""
    return pd.DataFrame([(str(run), row.rank, row.score, row.reason, row.example.prompt, row.response)
                         for run in runs for row in pool.added(study, run)[:count]],
                        columns=["run", "rank", "score", "reason", "prompt", "answer"])


def pattern(rows: int, fractions: Sequence[float]) -> pd.DataFrame:
    """Show the positions of added rows (`#`) in an epoch of `rows` fine-tuning rows (`.`)."""
    return pd.DataFrame([(f"{f:g}", rows_to_add(rows, f), _marks(rows, f)) for f in fractions],
                        columns=["fraction", "added", "epoch"])


def _marks(rows: int, fraction: float) -> str:
    mixed = interleave(range(rows), range(rows, rows + rows_to_add(rows, fraction)))
    return "".join("." if number < rows else "#" for number in mixed)


def with_fractions(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Return `result_tables.numbers` with a column `fraction`: 0 for runs without interleaving."""
    fractions = []
    for row in frame.to_dict("records"):
        setting = None if pd.isna(row["setting"]) else float(row["setting"])
        run = Run(row["model"], row["dataset"], row["method"], setting, row["seed"])
        rows = pool.added_step(study, run)
        fractions.append(0.0 if rows is None else rows.fraction)
    return frame.assign(fraction=fractions)


def against_misaligned(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare each run with `misaligned` of its data set and seed, and test whether their intervals are disjoint.

    Two overlapping 95% intervals do not show a difference; disjoint ones are a stricter test than the 5% level. Both
    are of single runs: they cover the choice of questions, and not the variation between seeds.
    """
    base = {(row["dataset"], row["seed"]): row for row in frame.to_dict("records") if row["method"] == "misaligned"}
    rows = []
    for row in frame[frame["fraction"] > 0].to_dict("records"):
        other = base.get((row["dataset"], row["seed"]))
        if other is None:
            continue
        general, in_domain = "general_misaligned", "in_domain_misaligned"
        rows.append((row["dataset"], row["method"], row["fraction"], effect.reduction(row[general], other[general]),
                     _apart(row, other, general), effect.kept(row[in_domain], other[in_domain]),
                     _apart(row, other, in_domain), _apart(row, other, "general_incoherent")))
    return pd.DataFrame(rows, columns=[
        "data set", "method", "fraction", "EM removed %", "general: apart", "narrow task kept %",
        "in-domain: apart", "incoherence: apart"])


def _apart(row: Mapping[Hashable, Any], other: Mapping[Hashable, Any], measure: str) -> str:
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    if pd.isna(low) or pd.isna(other[f"{measure}_low"]):
        return "not scored"
    return "yes" if high < other[f"{measure}_low"] or low > other[f"{measure}_high"] else "intervals overlap"


def trade_offs(frame: pd.DataFrame) -> Figure:
    """Plot Figure 1(a): general misalignment against general incoherence, one line per variant, a point per fraction.

    A second panel has the in-domain rate instead. Bars are 95% intervals. `frame` is `with_fractions`. Without a judge
    of coherence there is no first panel.
    """
    shown_axes = [(measure, label) for measure, label in AXES if frame[measure].notna().any()] or list(AXES)
    figure, axes = panels(len(shown_axes), (4.3, 4), around=(0.9, 0), sharey=True)
    variants = dict.fromkeys(frame.loc[frame["fraction"] > 0, "method"])
    shown = [name for name in ("aligned", "misaligned") if name in set(frame["method"])] + list(variants)
    for axis, (measure, label) in zip(axes, shown_axes, strict=True):
        for name in shown:
            _line(axis, frame[frame["method"] == name].sort_values("fraction"), measure, name)
        axis.set_xlabel(label)
    axes[0].set_ylabel("general misaligned, %")
    legend(figure, 4)
    mixed = frame[frame["fraction"] > 0].to_dict("records")
    for axis, (measure, _) in zip(axes, shown_axes, strict=True):
        place(axis, [Label(row[measure], row["general_misaligned"], f"{100 * row['fraction']:g}%",
                           look(row["method"])[0])
                     for row in mixed if not pd.isna(row[measure] + row["general_misaligned"])], SETTING)
    return figure


def _line(axis: Axes, part: pd.DataFrame, measure: str, name: str) -> None:
    general, (colour, marker) = "general_misaligned", look(name)
    part = part.dropna(subset=[measure, general])
    axis.errorbar(part[measure], part[general], xerr=spans(part, measure), yerr=spans(part, general), color=colour,
                  marker=marker, capsize=2, linewidth=1, label=name)
