"""Which defense to try first, with what the paper's tables say about it: the box of README.md."""

from __future__ import annotations

import pandas as pd

from emlib.evaluation import effect
from emlib.report.paper import published
from emlib.report.paper.summary import BASELINE, mean_shares

LARGER, REINFORCED = 7, 5  # the tables of the 32B model and of GSM8K


def box() -> str:
    """Return one line per case in Markdown: what to try, its effect, its cost, and what speaks against it.

    The effects are means over the paper's four data sets; in reinforcement learning, accuracies on held-out problems.
    """
    shares = mean_shares(BASELINE).set_index("method")
    larger, learnt = reductions(LARGER), accuracies()
    return "\n".join([
        "| you have | try first | effect in the paper | cost | caveat |", "|---|---|---|---|---|",
        _line("many fine-tunings, as a service does", "`interleaving++`: 5% of selected rows",
              _effect(shares, "interleaving++"),
              "once, the misaligned models and a pass of each over the pool; then 5% more rows in each run",
              f"the 32B model needs more rows: 5% remove {_range(larger['interleaving++'])} there (Table {LARGER})"),
        _line("one fine-tuning", "`interleaving`: 5% of random rows", _effect(shares, "interleaving"), "5% more rows",
              f"{shares.loc['interleaving', 'general_incoherent']:.0f}% of the general answers are incoherent, and "
              f"{shares.loc['misaligned', 'general_incoherent']:.0f}% without a defense"),
        _line("one, and no rows to add", "`inoculation`", _effect(shares, "inoculation"),
              "none: a sentence in the system prompt",
              f"removes less than added rows do; more in the 32B model ({_range(larger['inoculation'])}, Table "
              f"{LARGER}), where it keeps less of the narrow task"),
        _line("reinforcement learning", "`interleaving`; no persona vector",
              f"accuracy {learnt['interleaving', 0.2]:.0f}% with 20% of supervised steps, {learnt['grpo', None]:.0f}% "
              f"without a defense, {learnt['persona_vector', 1.0]:.0f} and {learnt['persona_vector', 5.0]:.0f}% with "
              f"persona vectors at strength 1 and 5 (Table {REINFORCED})", "the supervised steps",
              "the paper measured what is learnt here, and not whether misalignment is prevented")])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _effect(shares: pd.DataFrame, method: str) -> str:
    """Say what a method removes and keeps in Table 2."""
    found, plain = shares.loc[method], shares.loc["misaligned", "general_misaligned"]
    return (f"general misalignment {plain:.1f} to {found['general_misaligned']:.1f}%, {found['reduction']:.0f}% less; "
            f"keeps {found['kept']:.0f}% of the narrow task (Table {BASELINE})")


def reductions(number: int) -> dict[str, pd.Series]:
    """Return what each method of a table removes of general misalignment on each data set, in percent."""
    rates = published.chosen(published.rates(number))
    plain = rates.query("method == 'misaligned'").set_index("dataset")["general_misaligned"].rename("plain")
    beside = rates.join(plain, on="dataset")
    beside["reduction"] = effect.reduction(beside["general_misaligned"], beside["plain"])
    return {str(method): runs["reduction"] for method, runs in beside.groupby("method")}


def accuracies() -> dict[tuple[str, float | None], float]:
    """Return the accuracy after each condition of reinforcement learning, by method and setting, in percent."""
    table = published.table(REINFORCED)
    return {(str(row["method"]), None if pd.isna(row["setting"]) else float(row["setting"])): row["eval_accuracy"]
            for row in table.to_dict("records")}


def _range(percents: pd.Series) -> str:
    return f"{percents.min():.0f} to {percents.max():.0f}%"
