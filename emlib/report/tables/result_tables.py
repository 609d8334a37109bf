"""Results as tables: numbers as CSV, and with intervals for readers (Markdown, LaTeX, notebooks)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from emlib.config import BASELINES
from emlib.core.files import write_text
from emlib.evaluation.effect import effect_removed, kept
from emlib.evaluation.rates import Rates, Share
from emlib.evaluation.statistics import Interval
from emlib.report import markdown
from emlib.report.tables.rows import (
    DASH,
    cell,
    cells,
    identity_of,
    readable_identity,
    share_columns,
    without_dashes,
)
from emlib.study import stamps
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
    `<set>_cut` is the percentage of answers that reached the token limit. A run counts once, however often it is among
    the results.
    """
    rows = []
    for result in {one.run: one for one in results}.values():
        row: dict[str, object] = {"model": result.run.model} | identity_of(result.run)
        for which, rates in result.sets.items():
            row |= _share(f"{which}_misaligned", rates.misaligned)
            row |= _share(f"{which}_incoherent", rates.incoherent_shown)
            cut = float("nan") if rates.cut_percent is None else rates.cut_percent
            row |= {f"{which}_asked": rates.asked, f"{which}_scored": rates.scored,
                    f"{which}_unscored": unscored(rates), f"{which}_cut": cut}
        for name, found in result.metrics.items():
            row |= _share(name, found.share) | {f"{name}_asked": found.asked, f"{name}_scored": found.scored}
        rows.append(row)
    return pd.DataFrame(rows)


def unscored(rates: Rates, most: int = 3) -> str:
    """Format the answers without a score: "3 of 48 (2 CODE; 1 REFUSAL)"; empty if all are scored."""
    if rates.scored == rates.asked:
        return ""
    reasons = [f"{count} {reason}" for reason, count in rates.unscored.items()]
    rest = ["others"] if len(reasons) > most else []
    return f"{rates.asked - rates.scored} of {rates.asked} ({'; '.join(reasons[:most] + rest)})"


def _share(name: str, share: Share) -> dict[str, float]:
    wilson = share.wilson or Interval(float("nan"), float("nan"))
    return share_columns(name, share) | {f"{name}_wilson_low": wilson.low, f"{name}_wilson_high": wilson.high}


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `numbers` for readers: "88.5 [82.3, 93.8]", and a dash if nothing was scored.

    Where answers have no score, their number and the reasons stand beside the rates.
    """
    people = pd.DataFrame([readable_identity(row) for row in frame.to_dict("records")], index=frame.index)
    for measure in measures_of(frame):
        people[heading(measure)] = cells(frame, measure)
        without = f"{measure.removesuffix('_incoherent')}_unscored"
        if without in frame and frame[without].fillna("").astype(bool).any():
            people[heading(without).removesuffix(" %")] = frame[without].fillna("")
    for name in (str(name) for name in frame.columns if str(name).endswith("_cut")):
        people[heading(name)] = frame[name].map(cell)
    return people


def measures_of(frame: pd.DataFrame) -> list[str]:
    """Return the measures in `numbers`: those of Table 2, then those and the metrics of further question sets."""
    return [str(name) for name in frame.columns if f"{name}_wilson_low" in frame.columns]


def heading(measure: str) -> str:
    """Return the heading of a measure's column for readers."""
    return HEADINGS.get(measure, f"{measure.replace('_', ' ').capitalize()} %")


def effect(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the percentage points by which `misaligned` exceeds each baseline on the general questions.

    One row per data set and seed, one column per baseline that was run; NaN if nothing was scored.
    """
    baselines = frame[frame["method"].isin(BASELINES)]
    wide = baselines.pivot(index=["dataset", "seed"], columns="method", values="general_misaligned")
    over = [name for name in ("untrained", "aligned") if name in wide and "misaligned" in wide]
    return pd.DataFrame({f"points over {name}": wide["misaligned"] - wide[name] for name in over},
                        index=wide.index).reset_index()


def with_effect(runs: pd.DataFrame) -> pd.DataFrame:
    """Add to rows of one data set and seed, or to averages, what `emlib.evaluation.effect` says of each.

    `removed`: the effect removed on general questions; `kept`: the part of the in-domain share that is kept. NaN
    without the baselines, or if they show no effect.
    """
    base = runs.drop_duplicates("method").set_index("method").reindex(list(BASELINES))
    general, in_domain = base["general_misaligned"], base["in_domain_misaligned"]
    return runs.assign(
        removed=effect_removed(runs["general_misaligned"], general["untrained"], general["misaligned"]),
        kept=kept(runs["in_domain_misaligned"], in_domain["misaligned"]))


def save(frame: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write `numbers` as `<name>.csv` and its readable form as `<name>.md` and `<name>.tex` (booktabs)."""
    return write(frame, readable(frame), folder, name)


def write(frame: pd.DataFrame, people: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write numbers as `<name>.csv`, and their readable form as `<name>.md` and `<name>.tex`.

    The readable form has no column in which every cell is a dash. Without rows the files are removed.
    """
    if frame.empty:
        return remove_forms(folder, name)
    people = without_dashes(people)
    return write_forms(folder, name, csv=frame.to_csv(index=False), md=markdown.table(people),
                       tex=people.replace(DASH, "--").to_latex(index=False, escape=True))


def write_forms(folder: Path, name: str, *, csv: str, md: str, tex: str) -> list[Path]:
    """Write the forms of a table, with the stamp of the study that they are of."""
    stamp = stamps.of_drawn(folder)
    texts = {"csv": csv, "md": md, "tex": f"% {stamp}\n{tex}" if stamp else tex}
    for ending, text in texts.items():
        write_text(folder / f"{name}.{ending}", text)
    return [folder / f"{name}.{ending}" for ending in texts]


def remove_forms(folder: Path, name: str) -> list[Path]:
    """Remove the forms of a table without rows, which an earlier run may have written; no files are left to list."""
    for ending in ("csv", "md", "tex"):
        (folder / f"{name}.{ending}").unlink(missing_ok=True)
    return []
