"""The paper's numbers as means over its four narrow data sets, one line per method and hyperparameter value."""

from __future__ import annotations

import pandas as pd

from emlib.config import BASELINES
from emlib.evaluation import effect
from emlib.report.paper import published

BASELINE, LARGER = 2, 7  # the tables with the baselines of the 7B and of the 32B model
SWEEPS = (12, 13, 14, 15, 16, 17, 18)  # the sweeps of B.1, for the 7B model


def mean_shares(*tables: int, baseline: int = BASELINE) -> pd.DataFrame:
    """Average tables of one model over data sets: shares, EM reduction and what is kept in domain, all in percent.

    `reduction` and `kept` are means over data sets of `emlib.evaluation.effect`'s measures, against plain fine-tuning
    in the table `baseline`, which is of the same model; `reduction_low` and `_high` are the least and the most of them.
    """
    rates = published.rates(*tables)
    shares = ["general_misaligned", "general_incoherent", "in_domain_misaligned"]
    plain = published.rates(baseline).query("method == 'misaligned'").set_index("dataset")[shares]
    beside = rates.join(plain.add_suffix("_plain"), on="dataset")
    beside["reduction"] = effect.reduction(beside["general_misaligned"], beside["general_misaligned_plain"])
    beside["kept"] = effect.kept(beside["in_domain_misaligned"], beside["in_domain_misaligned_plain"])
    by_condition = beside.groupby(["method", "setting"], sort=False, dropna=False)
    least_and_most = by_condition["reduction"].agg(reduction_low="min", reduction_high="max")
    return by_condition[[*shares, "reduction", "kept"]].mean().join(least_and_most).reset_index()


def of_methods(*methods: str) -> pd.DataFrame:
    """Return what the paper finds for these methods at each value that it tried (Tables 2 and 12 to 18)."""
    means = pd.concat([mean_shares(BASELINE), mean_shares(*SWEEPS)]).query("method in @methods")
    ordered = means.assign(order=means["method"].map(methods.index)).sort_values(["order", "setting"], kind="stable")
    return readable(ordered.drop_duplicates(["method", "setting"], ignore_index=True))


def readable(means: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that readers need, under the paper's names of the methods."""
    baseline = means["method"].isin(BASELINES)
    return pd.DataFrame({
        "method": means["method"].map(published.LABELS), "setting": means["setting"],
        "general misaligned %": means["general_misaligned"], "EM removed %": means["reduction"].mask(baseline),
        "in-domain misaligned %": means["in_domain_misaligned"], "narrow task kept %": means["kept"].mask(baseline),
        "general incoherent %": means["general_incoherent"]})
