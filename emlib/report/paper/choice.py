"""Which defense to try first, with what the paper's tables say about it: README.md and docs/which-defense.md.

Every number is a mean over the paper's four data sets, of single runs with one judge.
"""

from __future__ import annotations

import pandas as pd

from emlib.report.paper import published
from emlib.report.paper.summary import BASELINE, LARGER, mean_shares

REINFORCED = 5  # the table of GSM8K
MODELS = {"7B": (BASELINE, (12, 13, 14, 15, 16, 17, 18)), "32B": (LARGER, (19, 20, 21, 22))}  # baselines, sweeps
# What is tried first, and its cost; by method and setting.
FIRST = {
    "many fine-tunings, as a service does": ("interleaving++", 0.05, "`interleaving++`: 5% of selected rows",
        "misaligned models are trained once, and each reads the pool; then 5% more rows in each run"),
    "the same, without misaligned models": ("on_policy", 0.2, "`on_policy`: 20% of rows that the model answers itself",
        "an answer to each added prompt, once; 20% more rows in each run"),
    "one fine-tuning": ("interleaving", 0.05, "`interleaving`: 5% of random rows", "5% more rows"),
    "one, and no rows to add": ("inoculation", None, "`inoculation`", "a sentence in the system prompt")}
MEASURES = {"EM removed %": "reduction", "narrow task kept %": "kept", "general incoherent %": "general_incoherent"}


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
    lines = ["| you have | try first | EM removed, 7B and 32B | narrow task kept | general answers incoherent | cost |",
             "|---|---|---|---|---|---|"]
    for case, (method, setting, shown, cost) in FIRST.items():
        lines.append(_line(case, shown, *(_both(found, method, setting, name) for name in MEASURES.values()), cost))
    plain = _both(found, "misaligned", None, "general_incoherent")
    return "\n".join([*lines, _line("no defense", "", "0%", "100%", plain, "")])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _both(found: pd.DataFrame, method: str, setting: float | None, measure: str) -> str:
    shares = (f"{of(found, model, method, setting)[measure]:.0f}" for model in MODELS)
    return f"{' and '.join(shares)}%"


def reinforced() -> str:
    """Return a sentence on reinforcement learning, where the paper measures what is learnt and not misalignment."""
    learnt = accuracies()
    return (f"In reinforcement learning the paper tests no defense against misalignment. It tests whether they hinder "
            f"learning: accuracy is {learnt['grpo', None]:.0f}% without a defense, {learnt['interleaving', 0.05]:.0f}% "
            f"with interleaving (5%), {learnt['inoculation', None]:.0f}% with inoculation, "
            f"{learnt['kl', 0.1]:.0f}% with KL, and {learnt['persona_vector', 1.0]:.0f} and "
            f"{learnt['persona_vector', 5.0]:.0f}% with persona vectors at strength 1 and 5 (Table {REINFORCED}).")


def comparison() -> str:
    """Return the paper's defenses side by side in Markdown: each measure in the 7B and in the 32B model."""
    found = means()
    rows = []
    for method, label in published.LABELS.items():
        settings = (0.05, 0.2) if method == "on_policy" else (published.CHOSEN.get(method),)
        for setting in settings:
            if method in set(found["method"]) - {"untrained", "aligned"}:
                name = label if setting is None else f"{label}, {setting:g}"
                rows.append({"defense": name} | {
                    f"{heading}, {model}": _cell(found, model, method, setting, measure)
                    for heading, measure in MEASURES.items() for model in MODELS})
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _cell(found: pd.DataFrame, model: str, method: str, setting: float | None, measure: str) -> str:
    rows = found[(found["model"] == model) & (found["method"] == method)]
    if rows.empty or (setting is not None and setting not in set(rows["setting"])):
        return "–"
    value = of(found, model, method, setting)[measure]
    bare = method == "misaligned" and measure != "general_incoherent"
    return "" if bare else f"{value:.0f}"


def by_fraction() -> str:
    """Return what each way to choose rows removes at each fraction, in percent, with the incoherent share in brackets.

    Tables 15 to 18 and 19 to 22.
    """
    found = means()
    rows = [{"model": model, "added rows": f"{fraction:.0%}"} | {
        published.LABELS[method]: f"{row['reduction']:.0f} ({row['general_incoherent']:.0f})"
        for method in published.INTERLEAVING for row in [of(found, model, method, fraction)]}
        for model in MODELS for fraction in (0.01, 0.05, 0.2, 0.5)]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def accuracies() -> dict[tuple[str, float | None], float]:
    """Return the accuracy after each condition of reinforcement learning, by method and setting, in percent."""
    table = published.table(REINFORCED)
    return {(str(row["method"]), None if pd.isna(row["setting"]) else float(row["setting"])): row["eval_accuracy"]
            for row in table.to_dict("records")}
