"""Tables in the paper's layout, from its numbers or from ours, with emphasis by the rules of its captions.

A table is a data frame of cells: texts with marks, which Markdown and LaTeX write differently. Markdown has no
underline, so HTML's is used; LaTeX needs the package booktabs. The marks of Tables 2, 7 and 12-22 are:

- underline: general misalignment that is at least 90% below `misaligned`; in-domain misalignment of at least 90% of it.
- italic: more incoherent answers than `misaligned`.
- bold: the best defense for a measure on a data set, or all of equally good ones; baselines are excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emlib.config import BASELINES
from emlib.core.registry import label_of_kind, swept_by_kind
from emlib.report.markdown import escaped_cell
from emlib.report.paper.published import LABELS
from emlib.report.tables.averages import mean_of_all
from emlib.report.tables.result_tables import MEASURES, remove_forms, write_forms
from emlib.report.tables.rows import FRACTIONS, cell, with_error

SYMBOLS = {"kl": "λ", "ldifs": "λ", "persona_vector": "α", "projection_penalty": "λ", "kl_pool": "λ",
           "concept_ablation": "k", "concept_ablation_components": "k", "inoculation_adapter": "c",
           "inoculation_consistency": "f", "consistency": "f", "safe_lora": "τ"}
LATER = {  # the names of methods in our profiles that the paper does not have and that no kind's label names
    "concept_ablation_components": "Concept Ablation (PCs)", "kl_pool": "KL-Div. on a pool",
    "random_adapter": "Random Adapter", "inoculation_consistency": "Inoculation + Consistency",
    "interleaving_online": "Interleaving, online", "interleaving_virtuous": "Interleaving, virtuous answers",
    "filtered": "Filtered Rows", "random_filtered": "Filtered at Random",
    "hinting_prompt": "Prompt that hints", "unrelated_prompt": "Unrelated Prompt",
    "ldifs_published": "LDIFS as published", "tried": "Tried"}
IN_LATEX = {"λ": r"$\lambda$", "α": r"$\alpha$", "β": r"$\beta$", "τ": r"$\tau$", "±": r"$\pm$", "%": r"\%", "_": r"\_",
            "↓": r"$\downarrow$", "↑": r"$\uparrow$", "–": "--", "~": r"$\sim$", "✓": "yes", "✗": "no", "<": "$<$"}
MARKDOWN = {"underline": "<u>{}</u>", "italic": "*{}*", "bold": "**{}**"}
LATEX = {"underline": r"\underline{{{}}}", "italic": r"\textit{{{}}}", "bold": r"\textbf{{{}}}"}

ENOUGH = 0.9
BLOCK = ["model", "dataset", "seed"]
GRPO_MEASURES = ("train_accuracy", "train_reward", "eval_accuracy", "eval_reward")
HEADINGS = dict(zip(MEASURES, ("General Misal. (↓)", "General Inc. (↓)", "In-domain Misal. (↑)", "In-domain Inc. (↓)"),
                    strict=True))


@dataclass(frozen=True)
class Cell:
    """A number as printed, and its marks."""

    text: str
    marks: frozenset[str] = frozenset()


def label(method: str, setting: float | None = None, symbols: Mapping[str, str] = SYMBOLS) -> str:
    """Return the paper's name of a method with its setting: "KL-Div., λ=0.1", "Interleaving, 5%"."""
    name = LABELS.get(method) or LATER.get(method) or label_of_kind(method) or method
    if setting is None or pd.isna(setting):
        return name
    if method in FRACTIONS:
        return f"{name}, {100 * setting:g}%"
    return f"{name}, {symbols.get(method) or swept_by_kind(method) or 'setting'}={setting:g}"


def misalignment(frame: pd.DataFrame, misaligned: pd.DataFrame | None = None, *, settings: bool = True) -> pd.DataFrame:
    """Return Tables 2, 7 and 12-22 of `result_tables.numbers` or `published.rates`; `misaligned` as in `marks`."""
    several = {name: frame[name].nunique() > 1 for name in ("model", "dataset", "seed")}
    lines = pd.DataFrame({name.capitalize().replace("Dataset", "Data set"): [Cell(str(value)) for value in frame[name]]
                          for name, shown in several.items() if shown}, index=frame.index)
    lines["Method"] = [Cell(label(method, setting if settings else None))
                       for method, setting in zip(frame["method"], frame["setting"], strict=True)]
    marked = marks(frame, misaligned)
    for measure, heading in HEADINGS.items():
        lines[heading] = [Cell(cell(value, digits=2), which)
                          for value, which in zip(frame[measure], marked[measure], strict=True)]
    return lines


def marks(frame: pd.DataFrame, misaligned: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the set of marks for each row of `frame` and each measure of Table 2.

    `frame` has the columns of `result_tables.numbers`. The rows of method `misaligned` come from the argument
    `misaligned`, or from `frame`; without them nothing is underlined or italic.
    """
    source = frame if misaligned is None else misaligned
    baseline = source[source["method"] == "misaligned"].drop_duplicates(BLOCK)
    undefended = frame[BLOCK].merge(baseline, on=BLOCK, how="left").set_index(frame.index)
    marked = {}
    for measure in MEASURES:
        holds = {"underline": _enough(frame, undefended, measure),
                 "italic": (frame[measure] > undefended[measure]) & measure.endswith("incoherent"),
                 "bold": _best(frame, measure)}
        marked[measure] = [frozenset(name for name, true in zip(holds, row, strict=True) if true)
                           for row in zip(*holds.values(), strict=True)]
    return pd.DataFrame(marked, index=frame.index)


def _enough(frame: pd.DataFrame, undefended: pd.DataFrame, measure: str) -> pd.Series:
    # if `misaligned` is zero there is nothing to prevent or to keep
    defended = ~frame["method"].isin(BASELINES) & (undefended[measure] > 0)
    # tolerance for rounding: 10% of 3.4 is 0.34000000000000003
    if measure == "general_misaligned":
        return defended & (frame[measure] <= (1 - ENOUGH) * undefended[measure] + 1e-9)
    if measure == "in_domain_misaligned":
        return defended & (frame[measure] >= ENOUGH * undefended[measure] - 1e-9)
    return pd.Series(False, index=frame.index)


def _best(frame: pd.DataFrame, measure: str) -> pd.Series:
    competing = frame[measure].where(~frame["method"].isin(BASELINES))
    best = competing.groupby([frame[name] for name in BLOCK]).transform(
        "max" if measure == "in_domain_misaligned" else "min")
    return competing.notna() & (competing == best)


def exact_match(frame: pd.DataFrame) -> pd.DataFrame:
    """Return Tables 3, 4 and 11: one row per method, one column per tier.

    `frame` holds one model and task of `benign.csv` or of `published`.

    Several seeds are shown as mean and standard deviation.
    """
    frame = _over_seeds(frame, ["tier", "method", "setting"], ["exact_match"])
    columns = {tier: f"Tier {tier:g}" for tier in sorted(frame["tier"].dropna().unique())} or {None: "Exact match %"}
    settings = frame["method"].duplicated().any() and not len(columns) > 1
    lines = []
    for (method, setting), rows in frame.groupby(["method", "setting"], sort=False, dropna=False):
        line = {"Method": Cell(label(str(method), setting if settings else None))}
        for tier, mean, spread in zip(rows["tier"], rows["exact_match"], rows["exact_match_std"], strict=True):
            line[columns[None if pd.isna(tier) else tier]] = Cell(with_error(mean, spread, 2))
        lines.append(line)
    return pd.DataFrame(lines, columns=["Method", *columns.values()])


def reinforcement(frame: pd.DataFrame) -> pd.DataFrame:
    """Return Tables 5 and 9: one row per condition; bold: the best trained one of each evaluation column (Table 9).

    `frame` is `grpo.csv` or from `published`; several seeds are shown as mean and standard deviation.
    """
    frame = _over_seeds(frame, ["method", "setting"], [name for name in GRPO_MEASURES if name in frame])
    lines = pd.DataFrame({"Method": [Cell(label(method, setting, SYMBOLS | {"kl": "β"})) for method, setting in
                                     zip(frame["method"], frame["setting"], strict=True)]}, index=frame.index)
    for name in (name for name in GRPO_MEASURES if name in frame):
        std = frame[f"{name}_std"]
        best = frame[name].where(frame["method"] != "untrained").max()
        digits = 2 if name.endswith("reward") or std.isna().all() else 1
        lines[name.replace("_", " ").capitalize()] = [
            Cell(with_error(value, spread, digits),
                 frozenset({"bold"} if name.startswith("eval") and value == best else ()))
            for value, spread in zip(frame[name], std, strict=True)]
    return lines


def _over_seeds(frame: pd.DataFrame, identity: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    """Average over seeds, in the order of `frame`, and add `<measure>_std` for each measure (NaN for one seed).

    A measure that one of the seeds lacks is NaN.
    """
    if "seed" not in frame:  # the paper's rows, which are averages already
        known = frame.rename(columns={"std": f"{measures[0]}_std"})
        return known.assign(**{f"{name}_std": float("nan") for name in measures if f"{name}_std" not in known})
    groups = frame.groupby(list(identity), dropna=False, sort=False)[list(measures)]
    means = mean_of_all(groups)
    return means.join(groups.std().where(means.notna()).add_suffix("_std")).reset_index()


def markdown(table: pd.DataFrame) -> str:
    """Write a table of cells as Markdown."""
    written = _in_form(table, MARKDOWN, escaped_cell).rename(columns=escaped_cell)
    return written.to_markdown(index=False, disable_numparse=True) + "\n"


def latex(table: pd.DataFrame) -> str:
    """Write a table of cells as LaTeX, which needs the package booktabs."""
    written = _in_form(table, LATEX, _escaped)
    written.columns = pd.Index([_escaped(name) for name in written.columns])
    words = sum(heading in ("Model", "Data set", "Method", "Seed") for heading in table.columns)
    return written.to_latex(index=False, escape=False,
                            column_format="l" * words + "r" * (len(table.columns) - words))


def _in_form(table: pd.DataFrame, form: dict[str, str], escape: Callable[[str], str]) -> pd.DataFrame:
    def written(one: Cell) -> str:
        text = escape(one.text)
        for name in form:
            if name in one.marks:
                text = form[name].format(text)
        return text

    return table.map(written)


def _escaped(text: str) -> str:
    for character, command in IN_LATEX.items():
        text = text.replace(character, command)
    return text


def save(table: pd.DataFrame, numbers: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write a table of cells as `<name>.md` and `<name>.tex`, and the numbers behind it as `<name>.csv`.

    Without rows the files are removed.
    """
    if table.empty:
        return remove_forms(folder, name)
    return write_forms(folder, name, csv=numbers.to_csv(index=False), md=markdown(table), tex=latex(table))
