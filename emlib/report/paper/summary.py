"""The paper's numbers as means over its four narrow data sets, one line per method and hyperparameter value."""

from __future__ import annotations

import pandas as pd

from emlib.config import BASELINES
from emlib.evaluation import effect
from emlib.report.paper import published

BASELINE, LARGER = 2, 7  # the tables with the baselines of the 7B and of the 32B model
SWEEPS = (12, 13, 14, 15, 16, 17, 18)  # the sweeps of B.1, for the 7B model
EFFECTS = ["reduction", "kept"]


def effects(*tables: int, baseline: int) -> pd.DataFrame:
    """Return the lines of tables, with what each removes and keeps beside plain fine-tuning on its data set.

    `reduction` and `kept` are those of `emlib.evaluation.effect`, in percent; plain fine-tuning is that of the table
    `baseline`, which is of the same model.
    """
    rates = published.rates(*tables)
    plain = published.rates(baseline).query("method == 'misaligned'").set_index("dataset")
    without = {share: rates["dataset"].map(plain[share]) for share in ("general_misaligned", "in_domain_misaligned")}
    return rates.assign(reduction=effect.reduction(rates["general_misaligned"], without["general_misaligned"]),
                        kept=effect.kept(rates["in_domain_misaligned"], without["in_domain_misaligned"]))


def mean_shares(*tables: int, baseline: int = BASELINE) -> pd.DataFrame:
    """Average tables of one model over data sets: shares, EM reduction and what is kept in domain, all in percent.

    `reduction` and `kept` are the means of `effects`; `_low` and `_high` of each are the least and the most.
    """
    by_condition = effects(*tables, baseline=baseline).groupby(["method", "setting"], sort=False, dropna=False)
    means = by_condition[["general_misaligned", "general_incoherent", "in_domain_misaligned", *EFFECTS]].mean()
    ends = [by_condition[name].agg(["min", "max"]).set_axis([f"{name}_low", f"{name}_high"], axis=1)
            for name in EFFECTS]
    return means.join(ends).reset_index()


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
