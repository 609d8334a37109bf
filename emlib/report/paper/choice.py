"""Which defense to try first, with what the paper's tables say about it: README.md and docs/which-defense.md.

Every number is a mean over the paper's four data sets, of single runs with one judge.
"""

from __future__ import annotations

import pandas as pd

from emlib.config import BASELINES
from emlib.report.paper import published
from emlib.report.paper.summary import BASELINE, LARGER, SWEEPS, effects, mean_shares
from emlib.report.tables.rows import cell, whole

REINFORCED, WEIGHTS = 5, 9  # the tables of GSM8K: the conditions in short, and every weight of KL
MODELS = {"7B": (BASELINE, SWEEPS), "32B": (LARGER, (19, 20, 21, 22))}  # baselines, sweeps
# What is tried first, and its cost; by method and setting.
FIRST = {
    "many fine-tunings (a service)": ("interleaving++", 0.05, "`interleaving++`, 5% of selected rows",
        "once: misaligned models, scores of the pool; then 5% more rows"),
    "many, and no misaligned models": ("on_policy", 0.05, "`on_policy`, 5%",
        "once: answers to the prompts; then 5% more rows"),
    "one fine-tuning": ("interleaving", 0.05, "`interleaving`, 5% of random rows", "5% more rows"),
    "one, and no rows to add": ("inoculation", None, "`inoculation`", "none"),
    "one, no rows to add; half or more of the task may go": ("kl", 0.1, "`kl`, 0.1",
        "a pass of the reference model for each row")}
# One column a model, with the least and the most of the data sets; then those with both models in a column.
SPREAD = {"EM removed %": "reduction", "narrow task kept %": "kept"}
MEASURES = {"general incoherent %": "general_incoherent"}
SHARES = {"general misaligned %": "general_misaligned", "in-domain misaligned %": "in_domain_misaligned"}  # small ones


def means() -> pd.DataFrame:
    """Return `mean_shares` of both models, by model, method and setting; NaN as setting where a method has none."""
    frames = []
    for model, (baseline, sweeps) in MODELS.items():
        found = pd.concat([mean_shares(*tables, baseline=baseline) for tables in ((baseline,), sweeps)])
        frames.append(found.drop_duplicates(["method", "setting"]).assign(model=model))
    return pd.concat(frames, ignore_index=True)


def of(found: pd.DataFrame, model: str, method: str, setting: float | None) -> pd.Series:
    """Return the row of one method of `means`; without a setting, that of the table with the baselines."""
    rows = found[(found["model"] == model) & (found["method"] == method)]
    return (rows if setting is None else rows[rows["setting"] == setting]).iloc[0]


def box() -> str:
    """Return one line per case in Markdown: what to try, what it removes and keeps in the 7B model, and its cost."""
    found = means()
    return _in_markdown([{"you have": case, "try first": shown} | {
        heading: _cell(found, "7B", method, setting, measure) for heading, measure in SPREAD.items()} | {"cost": cost}
        for case, (method, setting, shown, cost) in FIRST.items()])


def _of_both(found: pd.DataFrame, method: str, setting: float | None) -> dict[str, str]:
    """Return what a method removes and keeps in each model, and its incoherent answers in both, under headings."""
    return {f"{heading}, {model}": _cell(found, model, method, setting, measure)
            for heading, measure in SPREAD.items() for model in MODELS} | {
        heading: _both(found, method, setting, measure) for heading, measure in MEASURES.items()}


def _both(found: pd.DataFrame, method: str, setting: float | None, measure: str) -> str:
    """Return a measure of a method in the 7B and in the 32B model, as in "13/8"; a dash where it was not tried."""
    return "/".join(_cell(found, model, method, setting, measure) for model in MODELS)


def reinforced() -> str:
    """Return a sentence on reinforcement learning, where the paper measures what is learnt and not misalignment."""
    learnt = {condition: whole(percent) for condition, percent in accuracies().items()}
    return (f"In reinforcement learning the paper tests no defense against misalignment. It tests whether they hinder "
            f"learning on GSM8K, a benign task: the untrained model's accuracy is {learnt['untrained', None]}%, and it "
            f"becomes {learnt['grpo', None]}% without a defense, {learnt['interleaving', 0.05]}% "
            f"with interleaving (5%), {learnt['inoculation', None]}% with inoculation, "
            f"{learnt['kl', 0.1]}% with KL at weight 0.1 ({learnt['kl', 0.3]}% at 0.3 and {learnt['kl', 1.0]}% at 1), "
            f"and {learnt['persona_vector', 1.0]} and {learnt['persona_vector', 5.0]}% with persona vectors at "
            f"strength 1 and 5 (Tables {REINFORCED} and {WEIGHTS}).")


def comparison() -> str:
    """Return the paper's defenses side by side in Markdown: each measure in the 7B and in the 32B model."""
    found = means()
    rows = []
    for method, label in published.LABELS.items():
        settings = (0.05, 0.2) if method == "on_policy" else (published.CHOSEN.get(method),)
        for setting in settings:
            if method in set(found["method"]):
                name = "no defense" if method == "misaligned" else label if setting is None else f"{label}, {setting:g}"
                rows.append({"defense": name} | _of_both(found, method, setting) | {
                    heading: _both(found, method, setting, measure) for heading, measure in SHARES.items()})
    return _in_markdown(rows)


def _in_markdown(rows: list[dict[str, str]]) -> str:
    return str(pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True))


def _cell(found: pd.DataFrame, model: str, method: str, setting: float | None, measure: str) -> str:
    """Return a measure of a method; what it removes or keeps with the least and the most: "94 (93 to 97)"."""
    rows = found[(found["model"] == model) & (found["method"] == method)]
    missing = rows.empty or (setting is not None and setting not in set(rows["setting"]))
    relative = measure in SPREAD.values()
    if missing or (relative and method in BASELINES):
        return "–"
    row = of(found, model, method, setting)
    if relative:
        return spread(row, measure)
    return cell(row[measure], digits=1 if measure in SHARES.values() else 0)


def spread(row: pd.Series, measure: str, unit: str = "") -> str:
    """Return what a line of `means` removes or keeps, and the least and the most of the data sets: "94 (93 to 97)"."""
    mean, low, high = (f"{whole(row[name])}{unit}" for name in (measure, f"{measure}_low", f"{measure}_high"))
    return f"{mean} ({low.removesuffix(unit)} to {high})"


def by_dataset() -> str:
    """Return what each defense removes on each data set of the 7B model, and in brackets what it keeps; Table 2."""
    found = effects(BASELINE, baseline=BASELINE)
    rows = [{"defense": published.LABELS[method]} | {
        row["dataset"].title(): f"{whole(row['reduction'])} ({whole(row['kept'])})" for row in lines.to_dict("records")}
        for method, lines in found.groupby("method", sort=False) if method not in BASELINES]
    return _in_markdown(rows)


def by_fraction() -> str:
    """Return what each way to choose rows removes at each fraction, in percent, with the incoherent share in brackets.

    Tables 15 to 18 and 19 to 22.
    """
    found = means()
    rows = [{"model": model, "added rows": f"{100 * fraction:g}%"} | {
        published.LABELS[method]: f"{whole(row['reduction'])} ({whole(row['general_incoherent'])})"
        for method in published.INTERLEAVING for row in [of(found, model, method, fraction)]}
        for model in MODELS for fraction in (0.01, 0.05, 0.2, 0.5)]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def accuracies() -> dict[tuple[str, float | None], float]:
    """Return the accuracy after each condition of reinforcement learning, by method and setting, in percent.

    Table 5 has two digits, and Table 9 has further settings.
    """
    table = pd.concat([published.table(WEIGHTS), published.table(REINFORCED)])
    return {(str(row["method"]), None if pd.isna(row["setting"]) else float(row["setting"])): row["eval_accuracy"]
            for row in table.to_dict("records")}
