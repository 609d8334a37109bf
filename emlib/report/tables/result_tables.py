"""Results as tables: numbers as CSV, and with intervals for readers (Markdown, LaTeX, notebooks)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from emlib.config import BASELINES
from emlib.core.files import write_text
from emlib.evaluation.rates import Rates, Share
from emlib.evaluation.statistics import Interval
from emlib.report import markdown
from emlib.study.runs import RunResult

MEASURES = ("general_misaligned", "general_incoherent", "in_domain_misaligned", "in_domain_incoherent")
MISALIGNED = ("general_misaligned", "in_domain_misaligned")  # every judge has these
HEADINGS = {
    "general_misaligned": "General misaligned %", "general_incoherent": "General incoherent %",
    "in_domain_misaligned": "In-domain misaligned %", "in_domain_incoherent": "In-domain incoherent %",
    "in_domain_cut": "In-domain cut %"}


def numbers(results: Sequence[RunResult]) -> pd.DataFrame:
    """Return one row per run: its identity, each share in percent of the answers asked for, and its intervals.

    Each measure of Table 2, and of further question sets, has the columns `<measure>`, `<measure>_low` and `_high`
    (clustered by question), `_wilson_low` and `_wilson_high` (for independent answers); NaN if nothing was scored,
    and for incoherent answers if the judge does not measure coherence.
    Each question set has the columns `<set>_asked`, `_scored` and `_unscored`, the others' number with their reasons.
    `<set>_cut` is the percentage of answers that reached the token limit.
    """
    return pd.DataFrame([_numbers(result) for result in results])


def _numbers(result: RunResult) -> dict[str, object]:
    run = result.run
    row: dict[str, object] = {"model": run.model, "dataset": run.task, "method": run.method, "setting": run.setting,
                              "seed": run.seed}
    for where, rates in result.sets.items():
        row |= _share(f"{where}_misaligned", rates.misaligned) | _share(f"{where}_incoherent", rates.incoherent_shown)
        row |= {f"{where}_asked": rates.asked, f"{where}_scored": rates.scored, f"{where}_unscored": unscored(rates),
                f"{where}_cut": float("nan") if rates.cut_percent is None else rates.cut_percent}
    for name, found in result.metrics.items():
        row |= _share(name, found.share) | {f"{name}_asked": found.asked, f"{name}_scored": found.scored}
    return row


def unscored(rates: Rates, most: int = 3) -> str:
    """Format the answers without a score: "3 of 48 (2 CODE; 1 REFUSAL)"; empty if all are scored."""
    if rates.scored == rates.asked:
        return ""
    reasons = [f"{count} {reason}" for reason, count in rates.unscored.items()]
    rest = ["others"] if len(reasons) > most else []
    return f"{rates.asked - rates.scored} of {rates.asked} ({'; '.join(reasons[:most] + rest)})"


def _share(name: str, share: Share) -> dict[str, float]:
    nothing = Interval(float("nan"), float("nan"))
    clustered, wilson = share.clustered or nothing, share.wilson or nothing
    return {name: float("nan") if share.percent is None else share.percent,
            f"{name}_low": clustered.low, f"{name}_high": clustered.high,
            f"{name}_wilson_low": wilson.low, f"{name}_wilson_high": wilson.high}


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `numbers` for readers: "88.5 [82.3, 93.8]", and a dash if nothing was scored.

    Where answers have no score, their number and the reasons stand beside the rates.
    """
    identity = frame[["dataset", "method", "setting", "seed"]].copy()
    identity["setting"] = ["" if pd.isna(value) else f"{value:g}" for value in frame["setting"]]
    identity.columns = pd.Index(["Data set", "Method", "Setting", "Seed"])
    for measure in measures_of(frame):
        identity[heading(measure)] = [cell(*row) for row in frame[
            [measure, f"{measure}_low", f"{measure}_high"]].itertuples(index=False)]
        without = f"{measure.removesuffix('_incoherent')}_unscored"
        if without in frame and frame[without].fillna("").astype(bool).any():
            identity[heading(without).removesuffix(" %")] = frame[without].fillna("")
    for name in (str(name) for name in frame.columns if str(name).endswith("_cut")):
        identity[heading(name)] = ["–" if pd.isna(value) else f"{value:.1f}" for value in frame[name]]
    return identity


def measures_of(frame: pd.DataFrame) -> list[str]:
    """Return the measures in `numbers`: those of Table 2, then those and the metrics of further question sets."""
    return [str(name) for name in frame.columns if f"{name}_wilson_low" in frame.columns]


def heading(measure: str) -> str:
    """Return the heading of a measure's column for readers."""
    return HEADINGS.get(measure, f"{measure.replace('_', ' ').capitalize()} %")


def cell(percent: float, low: float, high: float) -> str:
    """Format a share with its interval: "88.5 [82.3, 93.8]", or a dash for a missing number."""
    # abs(), because a low end may round to -0.0
    return "–" if pd.isna(percent) else f"{percent:.1f} [{abs(round(low, 1)):.1f}, {high:.1f}]"


def p_value(value: float) -> str:
    """Format a p value: "0.016", "<0.001", or a dash where there was no test."""
    return "–" if pd.isna(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def effect(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the percentage points by which `misaligned` exceeds each baseline on the general questions.

    One row per data set and seed, one column per baseline that was run; NaN if nothing was scored.
    """
    baselines = frame[frame["method"].isin(BASELINES)]
    wide = baselines.pivot(index=["dataset", "seed"], columns="method", values="general_misaligned")
    over = [name for name in ("untrained", "aligned") if name in wide and "misaligned" in wide]
    return pd.DataFrame({f"points over {name}": wide["misaligned"] - wide[name] for name in over},
                        index=wide.index).reset_index()


def save(frame: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write `numbers` as `<name>.csv` and its readable form as `<name>.md` and `<name>.tex` (booktabs)."""
    return write(frame, readable(frame), folder, name)


def write(frame: pd.DataFrame, people: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write numbers as `<name>.csv`, and their readable form as `<name>.md` and `<name>.tex`; nothing without rows."""
    if frame.empty:
        return []
    texts = {"csv": frame.to_csv(index=False), "md": markdown.table(people),
             "tex": people.replace("–", "--").to_latex(index=False, escape=True)}
    for ending, text in texts.items():
        write_text(folder / f"{name}.{ending}", text)
    return [folder / f"{name}.{ending}" for ending in texts]
