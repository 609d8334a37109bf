"""What a study found, in sentences, each with the chapter that shows it. Numbers are read from its tables, never typed.

The tables are those that the chapters write: `rates.csv` of 13, `benign.csv` of 10, `grpo.csv` of 11. Shares are means
over data sets and seeds (`averages.over_datasets`); a sentence quotes them as they are, the intervals stand beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from emlib.config import BASELINES, Profile
from emlib.report.paper.overview import Bounds
from emlib.report.tables.averages import over_datasets
from emlib.report.tables.result_tables import cell
from emlib.workflow.chapters import chapters_about

ENOUGH = Bounds.reduction  # percent of the spread


@dataclass(frozen=True)
class Claim:
    """A sentence, and the chapter to look it up in."""

    text: str
    chapter: str


def means(rates: pd.DataFrame) -> pd.DataFrame:
    """A row a method and setting, averaged; `removed` and `kept` are percent of what `misaligned` did.

    `removed`: how much of its effect on general questions is gone; `kept`: how much of its in-domain share is left. NaN
    without the baselines, or where they show no effect.
    """
    frame = over_datasets(rates, same_questions=True)
    base = frame.drop_duplicates("method").set_index("method").reindex(list(BASELINES))
    before, after = base.loc["untrained", "general_misaligned"], base.loc["misaligned", "general_misaligned"]
    learnt = base.loc["misaligned", "in_domain_misaligned"]
    effect = after - before
    frame["removed"] = 100 * (after - frame["general_misaligned"]) / effect if effect > 0 else float("nan")
    frame["kept"] = 100 * frame["in_domain_misaligned"] / learnt if learnt > 0 else float("nan")
    return frame


def of_rates(frame: pd.DataFrame) -> list[Claim]:
    """Whether a narrow fine-tune spread, and which defenses prevent it; `frame` is `means`."""
    base = frame.drop_duplicates("method").set_index("method")
    found = []
    if "misaligned" in base.index:
        others = " and ".join(f"{base.loc[name, 'general_misaligned']:.1f}% {words}" for name, words in
                              (("untrained", "before any training"), ("aligned", "after the aligned rows"))
                              if name in base.index)
        found.append(Claim(f"After the misaligned rows, {_share(base.loc['misaligned'], 'general')} of the answers to "
                           f"general questions are misaligned{', against ' + others if others else ''}. In-domain: "
                           f"{_share(base.loc['misaligned'], 'in_domain')}.", "04_baselines"))
    defended = frame[~frame["method"].isin(BASELINES)].dropna(subset=["removed"])
    return found + ([_prevention(defended)] if len(defended) else [])


def _prevention(defended: pd.DataFrame) -> Claim:
    """Which defenses take away enough of the spread, and which of these leaves most of what was to be learnt."""
    enough = defended[defended["removed"] >= ENOUGH]
    if enough.empty:
        best = defended.loc[defended["removed"].idxmax()]
        return Claim(f"No defense takes away {ENOUGH:g}% of that spread; {name_of(best)} comes nearest with "
                     f"{best['removed']:.0f}%, and keeps {best['kept']:.0f}% of the in-domain share.", "14_figures")
    best = enough.loc[enough["kept"].idxmax()]
    names = ", ".join(map(name_of, _rows(enough)))
    return Claim(f"At least {ENOUGH:g}% of that spread is gone under {names}. Of these, {name_of(best)} leaves the "
                 f"largest part of the in-domain share: {best['kept']:.0f}%.", "14_figures")


def of_benign(frame: pd.DataFrame) -> list[Claim]:
    """What each method learns of each benign task; `frame` is `benign.csv`, whose `exact_match` is in percent."""
    found = []
    for (task, tier), runs in frame.groupby(["task", "tier"], sort=False, dropna=False):
        what = f"`{task}`" + ("" if pd.isna(tier) else f", tier {tier:g}")
        found.append(Claim(f"{what}: exact match in percent: {_scores(runs, 'exact_match')}.", "10_benign_tasks"))
    return found


def of_grpo(frame: pd.DataFrame) -> list[Claim]:
    """What each condition of reinforcement learning reaches; `frame` is `grpo.csv`."""
    return [Claim(f"Reinforcement learning: held-out accuracy in percent: {_scores(frame, 'eval_accuracy')}.",
                  "11_grpo")] if len(frame) else []


def _scores(runs: pd.DataFrame, measure: str) -> str:
    mean = runs.groupby(["method", "setting"], sort=False, dropna=False)[measure].mean().reset_index()
    return ", ".join(f"{name_of(row)} {row[measure]:.1f}" for row in _rows(mean))


def name_of(run: pd.Series) -> str:
    """A method and its setting, as Markdown."""
    return f"`{run['method']}`" + ("" if pd.isna(run["setting"]) else f" {run['setting']:g}")


def _share(run: pd.Series, where: str) -> str:
    percent, low, high = (run[f"{where}_misaligned{end}"] for end in ("", "_low", "_high"))
    return f"**{percent:.1f}%** [{low:.1f}, {high:.1f}]"


def _rows(frame: pd.DataFrame) -> list[pd.Series]:
    return [row for _, row in frame.iterrows()]


def chapters_of_methods(profile: Profile) -> dict[str, str]:
    """The chapter that is about each method: that of its first defense, or else the baselines'."""
    about = chapters_about()
    return {method.name: about.get(method.defenses[0].kind, "04_baselines") if method.defenses else "04_baselines"
            for method in profile.methods}


def table(frame: pd.DataFrame, chapters: Mapping[str, str]) -> pd.DataFrame:
    """`means` for people, with the chapter of each method."""
    people = pd.DataFrame({"Method": [name_of(row) for row in _rows(frame)]})
    for heading, measure in (("General misaligned %", "general_misaligned"),
                             ("In-domain misaligned %", "in_domain_misaligned"),
                             ("General incoherent %", "general_incoherent")):
        people[heading] = [cell(*row) for row in
                           frame[[measure, f"{measure}_low", f"{measure}_high"]].itertuples(index=False)]
    baseline = frame["method"].isin(BASELINES)
    for heading, share in (("Spread removed %", "removed"), ("In-domain kept %", "kept")):
        people[heading] = ["–" if bare or pd.isna(value) else f"{value:.0f}"
                           for bare, value in zip(baseline, frame[share], strict=True)]
    people["Chapter"] = frame["method"].map(chapters)
    return people
