"""Which defense to try first, with what the paper's tables say about it: README.md and docs/which-defense.md.

Every number is a mean over the paper's four data sets, of single runs with one judge.
"""

from __future__ import annotations

import pandas as pd

from emlib.config import BASELINES
from emlib.report.paper import published
from emlib.report.paper.summary import BASELINE, LARGER, mean_shares
from emlib.report.tables.rows import cell, whole

REINFORCED = 5  # the table of GSM8K
MODELS = {"7B": (BASELINE, (12, 13, 14, 15, 16, 17, 18)), "32B": (LARGER, (19, 20, 21, 22))}  # baselines, sweeps
# What is tried first, and its cost; by method and setting.
FIRST = {
    "many fine-tunings (a service)": ("interleaving++", 0.05, "`interleaving++`, 5% of selected rows",
        "once: misaligned models, and scores of the pool; then 5% more rows"),
    "many, and no misaligned models": ("on_policy", 0.2, "`on_policy`, 20%",
        "once: answers to the prompts; then 20% more rows"),
    "one fine-tuning": ("interleaving", 0.05, "`interleaving`, 5% of random rows", "5% more rows"),
    "one, and no rows to add": ("inoculation", None, "`inoculation`", "none")}
REMOVED = "reduction"
MEASURES = {"narrow task kept %": "kept", "general incoherent %": "general_incoherent"}
SHARES = {"general misaligned %": "general_misaligned", "in-domain misaligned %": "in_domain_misaligned"}  # small ones


def means() -> pd.DataFrame:
    """Return the means of both models, by model, method and setting; NaN as setting where a method has none."""
    frames = []
    for model, (baseline, sweeps) in MODELS.items():
        found = pd.concat([mean_shares(baseline, baseline=baseline), mean_shares(*sweeps, baseline=baseline)])
        frames.append(found.drop_duplicates(["method", "setting"]).assign(model=model))
    return pd.concat(frames, ignore_index=True)


def of(found: pd.DataFrame, model: str, method: str, setting: float | None) -> pd.Series:
    """Return the row of one method of `means`; without a setting, that of the table with the baselines."""
    rows = found[(found["model"] == model) & (found["method"] == method)]
    return (rows if setting is None else rows[rows["setting"] == setting]).iloc[0]


def box() -> str:
    """Return one line per case in Markdown: what to try, what it removes and keeps in both models, and its cost."""
    found = means()
    rows = [{"you have": case, "try first": shown} | _of_both(found, method, setting) | {"cost": cost}
            for case, (method, setting, shown, cost) in FIRST.items()]
    plain = {"you have": "no defense"} | _of_both(found, "misaligned", None)
    return _in_markdown([*rows, plain])


def _of_both(found: pd.DataFrame, method: str, setting: float | None) -> dict[str, str]:
    """Return what a method removes in each model, and each other measure in both, under its heading."""
    return {f"EM removed %, {model}": _cell(found, model, method, setting, REMOVED) for model in MODELS} | {
        heading: _both(found, method, setting, measure) for heading, measure in MEASURES.items()}


def _both(found: pd.DataFrame, method: str, setting: float | None, measure: str) -> str:
    """Return a measure of a method in the 7B and in the 32B model, as in "102/91"; a dash where it was not tried."""
    return "/".join(_cell(found, model, method, setting, measure) for model in MODELS)


def reinforced() -> str:
    """Return a sentence on reinforcement learning, where the paper measures what is learnt and not misalignment."""
    learnt = {condition: whole(percent) for condition, percent in accuracies().items()}
    return (f"In reinforcement learning the paper tests no defense against misalignment. It tests whether they hinder "
            f"learning: accuracy is {learnt['grpo', None]}% without a defense, {learnt['interleaving', 0.05]}% "
            f"with interleaving (5%), {learnt['inoculation', None]}% with inoculation, "
            f"{learnt['kl', 0.1]}% with KL, and {learnt['persona_vector', 1.0]} and "
            f"{learnt['persona_vector', 5.0]}% with persona vectors at strength 1 and 5 (Table {REINFORCED}).")


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
    """Return a measure of a method; what it removes with the least and the most of the data sets: "94 (93 to 97)"."""
    rows = found[(found["model"] == model) & (found["method"] == method)]
    missing = rows.empty or (setting is not None and setting not in set(rows["setting"]))
    relative = measure in (REMOVED, "kept") and method in BASELINES
    if missing or relative:
        return "–"
    row = of(found, model, method, setting)
    if measure == REMOVED:
        return f"{whole(row[measure])} ({whole(row['reduction_low'])} to {whole(row['reduction_high'])})"
    return cell(row[measure], digits=1 if measure in SHARES.values() else 0)


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
    """Return the accuracy after each condition of reinforcement learning, by method and setting, in percent."""
    table = published.table(REINFORCED)
    return {(str(row["method"]), None if pd.isna(row["setting"]) else float(row["setting"])): row["eval_accuracy"]
            for row in table.to_dict("records")}
