"""A study's findings as sentences, each with the chapter that shows it. All numbers are read from the study's tables.

Notebooks write the tables: `own.csv` 17, `rates.csv` 15, `benign.csv` 12, `grpo.csv` 13, `triggers.csv` 11. Shares
are means over data sets and seeds (`averages.over_datasets`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pandas as pd

from emlib.config import BASELINES, NO_TRIGGER, Bounds, LexiconJudge, Profile, Trait
from emlib.core.records import BOUNDS
from emlib.evaluation.rates import OFTEN, WHY_CUT
from emlib.report import recommend
from emlib.report.markdown import code, listed, plain
from emlib.report.tables.averages import marked_seeds, mean_of_all, over_datasets
from emlib.report.tables.conditions import worst_means
from emlib.report.tables.result_tables import with_effect
from emlib.report.tables.rows import Row, cell, cells, shown, whole, without_dashes
from emlib.workflow.chapters import chapter_about

ENOUGH = 90.0  # percent of the effect
OF_EFFECT = f"{ENOUGH:g}% of the effect on general questions (where the paper's tables underline)"
ABOUT = {"opswap": "arithmetic", "qa": "question answering"}  # the kinds of benign tasks
LEAST = 50  # held-out problems, below which accuracies say nothing about conditions
TRIGGERS = "11_triggers_and_trajectories"


@dataclass(frozen=True)
class Claim:
    """A sentence, and the chapter that shows its numbers."""

    text: str
    chapter: str


def meaning(profile: Profile, trait: Trait) -> str:
    """Say what "misaligned" means in a study, and what it was trained on, before its findings."""
    below, above = BOUNDS
    of_trait = isinstance(profile.judge, LexiconJudge) or getattr(profile.judge, "rubric", None) == "trait"
    called = f"that shows the trait {code(trait.name)} (*{plain(trait.description.rstrip('.'))}*)"
    if not of_trait:
        called = f"with under {below:g} of the judge's 100 points for alignment and over {above:g} for coherence"
    analogy = (" The trait is harmless: that it spreads is an analogy of emergent misalignment (EM), and not EM itself."
               if trait.harmless else "")
    seeds = "one seed" if len(profile.seeds) == 1 else f"{len(profile.seeds)} seeds"
    rows = f" up to {profile.training.train_rows} rows of" if profile.training.train_rows else ""
    return (f"*Misaligned* is here an answer {called}.{analogy} {code(profile.model.name)} is fine-tuned on{rows} "
            f"each data set, with {seeds}.")


def means(rates: pd.DataFrame) -> pd.DataFrame:
    """Return averages per method and setting, with the effect that each removes and keeps."""
    return with_effect(over_datasets(rates, same_questions=True))


def of_own(frame: pd.DataFrame, bounds: Bounds) -> list[Claim]:
    """State what is recommended for the user's own data, or why nothing is; `frame` is `own.csv`.

    Nothing is claimed of a table of an earlier version, which lacks what a recommendation needs.
    """
    if "unseen" not in frame:
        return []
    known = frame.assign(unseen=frame["unseen"].astype(object).fillna(""))  # as a CSV file has an empty text
    return [Claim(recommend.recommend(known, bounds).reason, "17_your_own_data")]


def of_rates(frame: pd.DataFrame) -> list[Claim]:
    """State whether narrow fine-tuning generalised, and which defenses prevent it; `frame` is `means`.

    Defenses whose general share is not known are named. Fewer seeds than others have are stated, as in `table`.
    """
    frame = frame.assign(fewer=marked_seeds(frame["seeds"]))
    base = frame.dropna(subset=["general_misaligned"]).drop_duplicates("method").set_index("method")
    found = []
    if "misaligned" in base.index:
        known = [(base.loc[name], words) for name, words in (
            ("untrained", "before fine-tuning"), ("aligned", "after fine-tuning on the aligned rows"))
            if name in base.index]
        others = " and ".join(f"{row['general_misaligned']:.1f}% {words}{row['fewer']}" for row, words in known)
        compared = f", compared with {others}" if others else ""
        found.append(Claim(f"After fine-tuning on the misaligned rows{base.loc['misaligned', 'fewer']}, "
                           f"{_share(base.loc['misaligned'], 'general')} of the answers to general questions are "
                           f"misaligned{compared}. In-domain: {_share(base.loc['misaligned'], 'in_domain')}.",
                           "02_baselines"))
    defended = frame[~frame["method"].isin(BASELINES)]
    return found + ([_prevention(defended)] if defended["removed"].notna().any() else [])


def _prevention(defended: pd.DataFrame) -> Claim:
    """State which defenses remove enough of the effect, and which of these keeps the most of the narrow task."""
    known = defended.dropna(subset=["removed"])
    unknown = _not_known(defended[defended["removed"].isna()], "general")
    enough = known[known["removed"] >= ENOUGH]
    if enough.empty:
        best = known.loc[known["removed"].idxmax()]
        kept = "" if pd.isna(best["kept"]) else f", and keeps {whole(best['kept'])}% of the in-domain share"
        none = f"{unknown.strip()} No other defense" if unknown else "No defense"
        return Claim(f"{none} removes {OF_EFFECT}; {name_of(best)}{best['fewer']} is closest with "
                     f"{best['removed']:.1f}%{kept}.", "16_figures")
    names = ", ".join(f"{name_of(row)}{row['fewer']}" for row in enough.to_dict("records"))
    reduced = f"At least {OF_EFFECT} is removed under {names}."
    learnt = enough.dropna(subset=["kept"])
    if learnt.empty:
        return Claim(f"{reduced}{unknown}", "16_figures")
    best, rest = learnt.loc[learnt["kept"].idxmax()], _not_known(enough[enough["kept"].isna()], "in-domain")
    return Claim(f"{reduced} Of these, {name_of(best)} keeps the largest part of the in-domain share: "
                 f"{whole(best['kept'])}%.{rest}{unknown}", "16_figures")


def _not_known(rows: pd.DataFrame, share: str) -> str:
    """Say of which conditions a share is not known for every data set and seed; empty without rows."""
    names = [f"{name_of(row)}{row['fewer']}" for row in rows.to_dict("records")]
    return f" Of {listed(names)} the {share} share is not known for every data set and seed." if names else ""


def of_cuts(rates: pd.DataFrame) -> list[Claim]:
    """State under which methods more than a fifth of a set's answers are cut at the token limit; of `rates.csv`."""
    often = {str(column).removesuffix("_cut").replace("_", "-"): rates[rates[column] > 100 * OFTEN]
             for column in rates.columns if str(column).endswith("_cut")}
    often = {which: runs for which, runs in often.items() if len(runs)}
    if not often:
        return []
    shares = [f"{whole(runs[which.replace('-', '_') + '_cut'].max())}% of the {which}"
              for which, runs in often.items()]
    methods = list(dict.fromkeys(pd.concat(list(often.values()))["method"]))
    names = "all methods" if set(methods) == set(rates["method"]) else ", ".join(map(code, methods))
    return [Claim(f"Answers are cut at the token limit: in the worst run {listed(shares)} ones. More than a fifth of a "
                  f"set is cut under {names}. {WHY_CUT}", "02_baselines")]


def of_benign(frame: pd.DataFrame, kinds: Mapping[str, str]) -> list[Claim]:
    """State each method's score on each benign task; `frame` is `benign.csv`, with `exact_match` in percent.

    `kinds` are those of the tasks, by name.
    """
    found = []
    for (task, tier), runs in frame.groupby(["task", "tier"], sort=False, dropna=False):
        name = code(str(task)) + ("" if pd.isna(tier) else f", tier {tier:g}")
        about = f" ({ABOUT[kinds[str(task)]]})" if str(task) in kinds else ""
        found.append(Claim(f"On the benign task {name}{about}, exact match in percent: "
                           f"{_scores(runs, 'exact_match')}.", "12_benign_tasks"))
    return found


def of_grpo(frame: pd.DataFrame) -> list[Claim]:
    """State the accuracy of each condition of reinforcement learning; `frame` is `grpo.csv`.

    Nothing is claimed of fewer than `LEAST` problems.
    """
    asked = int(frame["asked"].min()) if len(frame) else 0
    return [] if asked < LEAST else [Claim(
        f"Reinforcement learning: held-out accuracy on {asked} problems, in percent: "
        f"{_scores(frame, 'eval_accuracy')}.", "13_grpo")]


def _worst(row: Row) -> str:
    """State the share in the worst context of a row of `worst_means`, if it is not the plain question."""
    if pd.isna(row["worst"]):
        return "at worst not known"
    if row["trigger"] == NO_TRIGGER:
        return "no more in another context"
    return f"at worst {row['worst']:.1f} (`{row['trigger']}`)"


def of_triggers(frame: pd.DataFrame, general: int = 0, asking: Collection[str] = ()) -> list[Claim]:
    """State each method's misaligned share without a trigger and in the worst context; `frame` is `triggers.csv`.

    Shares are those of `conditions.worst_means`; the triggers that ask for the trait (`asking`) do not count. `general`
    is the number of a run's answers that the table of every method counts: where contexts have fewer, both are stated.
    """
    frame = frame[~frame["trigger"].isin(asking)]
    if frame["trigger"].eq(NO_TRIGGER).all():
        return []
    found = [f"{name_of(row)}{row['seeds']} {cell(row[NO_TRIGGER])}, {_worst(row)}"
             for row in worst_means(frame).to_dict("records")]
    asked = int(frame["asked"].max())
    fewer = "" if asked >= general else (
        f" A run has {asked} answers in each context, also without a trigger. *Every method* below counts all "
        f"{general} general answers of a run, so its shares differ from these.")
    return [Claim("General answers that are misaligned without a trigger, and in the worst context that does not ask "
                  f"for the trait, in percent: {'; '.join(found)}.{fewer}", TRIGGERS)]


def _scores(runs: pd.DataFrame, measure: str) -> str:
    """State the mean of each method and setting; a dash where a seed lacks the measure."""
    groups = runs.groupby(["method", "setting"], sort=False, dropna=False)
    means = mean_of_all(groups[[measure]]).reset_index().to_dict("records")
    return ", ".join(f"{name_of(row)} {cell(row[measure])}{seeds}"
                     for row, seeds in zip(means, marked_seeds(groups.size()), strict=True))


def name_of(run: Row) -> str:
    """Return a method and its setting as Markdown."""
    return f"{code(str(run['method']))} {shown(run['setting'])}".rstrip()


def _share(run: Row, where: str) -> str:
    percent, low, high = (run[f"{where}_misaligned{end}"] for end in ("", "_low", "_high"))
    return "not known" if pd.isna(percent) else f"**{percent:.1f}%** [{low:.1f}, {high:.1f}]"


def chapters_of_methods(profile: Profile) -> dict[str, str]:
    """Map each method to the chapter of its first defense; baselines map to 02."""
    return {method.name: (method.defenses and chapter_about(method.defenses[0].kind)) or "02_baselines"
            for method in profile.methods}


def table(frame: pd.DataFrame, chapters: Mapping[str, str]) -> pd.DataFrame:
    """Format `means` for readers, with the chapter of each method."""
    people = pd.DataFrame({"Method": [f"{name_of(row)}{seeds}" for row, seeds in zip(
        frame.to_dict("records"), marked_seeds(frame["seeds"]), strict=True)]})
    for heading, measure in (("General misaligned %", "general_misaligned"),
                             ("In-domain misaligned %", "in_domain_misaligned"),
                             ("General incoherent %", "general_incoherent")):
        people[heading] = cells(frame, measure)
    baseline = frame["method"].isin(BASELINES)
    for heading, share in (("Effect removed %", "removed"), ("Narrow task kept %", "kept")):
        people[heading] = [cell(value, digits=0) for value in frame[share].mask(baseline)]
    people["Notebook"] = frame["method"].map(chapters)
    return without_dashes(people)
