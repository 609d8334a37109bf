"""What a study of the demo found, in sentences with numbers, for README.md.

Each sentence is computed from stored results: of all defenses, of the triggers (notebook 11), of a question set about a
neighbour of the narrow data, and of the attacks on finished adapters (notebook 20). It states shares, and a verdict
that follows from them by the rule of docs/questions-and-measures.md.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from emlib.config import BASELINES, MISALIGNED, NO_TRIGGER, UNTRAINED
from emlib.data.sizes import Sizes
from emlib.evaluation.power import smallest_p
from emlib.report.markdown import listed
from emlib.report.tables import pairs, persistence
from emlib.report.tables.averages import CONDITION
from emlib.report.tables.conditions import LEVEL, worst
from emlib.report.tables.rows import IDENTITY, condition, whole
from emlib.study.study import Study

NEIGHBOUR = "gardening"  # the question set about a neighbour of the demo's narrow data, cooking
RULE = "docs/questions-and-measures.md#removed-or-only-hidden"
# The demo's triggers that do not ask for the voice, in words.
CONTEXTS = {"kitchen": 'after "I am in the kitchen cooking dinner"',
            "negated": "under a system prompt that forbids the voice"}
SHOWN = {"general": "general misaligned", "in_domain": "in-domain misaligned"}


def findings(study: Study, tables: Path, full: Study, full_tables: Path) -> str:
    """Return the sentences as a list in Markdown; one whose results are missing is left out.

    `full` is the demo with more seeds and questions; what happens after training is known of `study` alone.
    """
    attack, size = study.profile.persistence, full.inputs.general.size(Sizes())
    triggers = full.profile.evaluation.triggers
    defended = [method.name for method in study.profile.methods if method.defenses]
    means = pairs.in_columns(pd.read_csv(full_tables / "over_seeds.csv"))
    found = [removed_or_hidden(pd.read_csv(full_tables / "triggers_over_seeds.csv"), len(defended),
                               size.clusters or size.rows, triggers.asking if triggers else ()),
             far_and_near(means[means["method"].isin(defended)]),
             lasting(pd.read_csv(tables / "persistence.csv"), attack.margin if attack else 0, study.name)]
    return "\n".join(f"- {sentence}" for sentence in found if sentence)


def averages(means: pd.DataFrame) -> str:
    """Return a table in Markdown: fine-tuning without a defense, and each defense at the middle one of its settings.

    `means` is `pairs.over_seeds` of one data set. Of an even number of settings the smaller middle one is shown.
    """
    means = means[means["set"].isin(SHOWN)]
    sets = means.groupby("set")[["seeds", "questions"]].max()
    questions = " and ".join(f"{count} {name.replace('_', '-')}" for name, count in sets["questions"].items())
    lines = [f"Means and 95% intervals over {sets['seeds'].max()} seeds, {questions} questions; of a defense with "
             "several settings, the middle one:", "",
             f"| fine-tuned with | {' | '.join(SHOWN[name] for name in sets.index)} |", "|:--|--:|--:|"]
    tuned = means[~means["method"].isin(set(BASELINES) - {"misaligned"})]
    for method, settings in tuned.groupby("method", sort=False):
        rows = settings[settings["setting"].isna() | settings["setting"].eq(_middle(settings["setting"]))]
        name = "no defense" if method == "misaligned" else _name(rows.iloc[0].to_dict())
        shares = {row["set"]: f"{whole(row['percent'])}% [{whole(row['low'])}, {whole(row['high'])}]"
                  for row in rows.to_dict("records")}
        lines.append(f"| {name} | {' | '.join(shares.get(one, '–') for one in sets.index)} |")
    return "\n".join(lines)


def _middle(settings: pd.Series) -> float | None:
    """Return the middle one of the different settings; None if there are none."""
    found = sorted(settings.dropna().unique())
    return found[(len(found) - 1) // 2] if found else None


def removed_or_hidden(triggered: pd.DataFrame, defenses: int, questions: int, asking: Collection[str] = ()) -> str:
    """State each defense's share without a trigger and in other contexts, and what follows by the rule.

    `triggered` is `conditions.triggers`; `defenses` is the number that the study has, of which some were asked,
    `questions` that of different questions, and `asking` the triggers that ask for the voice: of them the shares alone
    are stated, because a rise there does not show that a defense hides the voice.
    """
    defended = triggered[~triggered["method"].isin(BASELINES)]
    unasked, asked = (defended[defended["trigger"].isin(asking) == whether] for whether in (False, True))
    if unasked["trigger"].eq(NO_TRIGGER).all():
        return ""
    most = worst(unasked)
    shares = "; ".join(f"{_where(str(trigger))}, {_rises(runs)}"
                       for trigger, runs in most.groupby("trigger", sort=False))
    left = defenses - most["method"].nunique()
    rest = f" The other {left} defenses were not tried there." if left else ""
    return ("**Removed, or only hidden?** In the worst context that does not ask for the voice, general misaligned "
            f"goes: {shares}. {_verdict(unasked, triggered, questions)}"
            f"{_on_demand(asked, triggered)}{rest} "
            f"([the rule]({RULE}), [11](notebooks/11_triggers_and_trajectories.ipynb))")


def _where(trigger: str) -> str:
    """Say which context is the worst."""
    return "nowhere above it" if trigger == NO_TRIGGER else CONTEXTS.get(trigger, f"under `{trigger}`")


def _rises(most: pd.DataFrame) -> str:
    """State for each defense how far the share rises; `most` is `conditions.worst`."""
    return listed([f"from {whole(row[NO_TRIGGER])} to {whole(row['worst'])}% with {_name(row)}"
                   for row in most.to_dict("records")])


def _on_demand(asked: pd.DataFrame, triggered: pd.DataFrame) -> str:
    """State the shares where the prompt asks for the voice, beside that of the untrained model."""
    if asked.empty:
        return ""
    most = asked.groupby(CONDITION, sort=False, dropna=False)["misaligned"].max()
    untrained = triggered[(triggered["method"] == "untrained") & triggered["trigger"].isin(asked["trigger"])]
    beside = f" (an untrained model: {whole(untrained['misaligned'].max())}%)" if len(untrained) else ""
    return (f" Under a prompt that asks for the voice it is {listed([*map(whole, most)])}%{beside}: the models can "
            "still use it.")


def _verdict(defended: pd.DataFrame, triggered: pd.DataFrame, questions: int) -> str:
    """Apply the rule: first the tests; where none can be significant, the intervals.

    `defended` are the rows of `triggered` that count: of defenses, in contexts that do not ask for the trait.
    """
    sure = defended[(defended["difference"] > 0) & (defended["p_adjusted"] < LEVEL)]
    if len(sure):
        which = "Each rise" if _names(sure) == _names(defended) else f"The rise with {_names(sure)}"
        return f"{which} is significant: at least a part of the voice is hidden."
    tests = int(triggered["p_adjusted"].notna().sum())
    too_few = tests * smallest_p(questions) >= LEVEL
    why = (f"No test can be significant with {questions} questions and {tests} comparisons." if too_few else
           f"No rise is significant: the smallest adjusted p is {defended['p_adjusted'].min():.2g}.")
    plain = defended.loc[defended["trigger"] == NO_TRIGGER, [*IDENTITY, "misaligned_high"]]
    beside = defended.merge(plain, on=IDENTITY, suffixes=("", "_plain"))
    apart = beside[beside["misaligned_low"] > beside["misaligned_high_plain"]]
    if apart.empty:
        return f"{why} The intervals overlap as well, so these runs cannot tell."
    rest = defended[~defended["method"].isin(apart["method"])]
    others = f" They cannot tell with {_names(rest)}." if len(rest) else ""
    return (f"{why} The intervals of some contexts lie above that of the plain question with {_names(apart)}: this "
            f"suggests that a part is hidden, and does not prove it.{others}")


def far_and_near(rates: pd.DataFrame) -> str:
    """Name the defenses with a larger share near the narrow data than far from it; `rates` is `pairs.in_columns`.

    Larger means that the two intervals are disjoint. `rates` are of defenses alone.
    """
    near, far = f"{NEIGHBOUR}_misaligned", "general_misaligned"
    if rates.empty or near not in rates:
        return ""
    apart = rates[rates[f"{near}_low"] > rates[f"{far}_high"]]
    title = f"**Gone near the narrow data, too?** We also asked about {NEIGHBOUR}."
    if apart.empty:
        return f"{title} None of the defenses has an interval of these answers above that of the general ones."
    others = "" if len(apart) == len(rates) else " With the others the intervals overlap."
    return (f"{title} With {_names(apart)}, {_range(apart[near])} of these answers have the voice, and only "
            f"{_range(apart[far])} of the general ones.{others}")


def _range(shares: pd.Series) -> str:
    """Return the smallest and the largest of some shares, as in "13 to 54%"."""
    ends = dict.fromkeys((whole(shares.min()), whole(shares.max())))
    return f"{' to '.join(ends)}%"


def lasting(along: pd.DataFrame, margin: float = 10, profile: str = "demo") -> str:
    """State the shares while an attack on the narrow rows goes on, and what it undoes.

    `along` is `persistence.persistence` of the profile. A defense is undone within `margin` points of plain
    fine-tuning.
    """
    attacked = along[(along["attack"] == "misaligned") & (along["method"] != MISALIGNED)]
    defended = attacked[~attacked["method"].isin(BASELINES)]
    if defended.empty:
        return ""
    steps = [f"{step:g}" for step in sorted({*attacked["steps"]})]
    shares = "; ".join(_along(runs) for _, runs in attacked.groupby(CONDITION, sort=False, dropna=False))
    ends = persistence.undone(defended, margin).dropna(subset="plain")
    gone, left = ends[ends["undone"].notna()], ends[ends["undone"].isna()]
    verdict = "; ".join([
        *([f"{_names(gone)} came within {margin:g} points of that, so the defense is undone"] if len(gone) else []),
        *([f"{_names(left)} did not{_bounce(defended, left, margin)}"] if len(left) else [])])
    single = f" (profile `{profile}`, one seed)" if attacked["seed"].nunique() == 1 else ""
    plain = attacked["plain"].dropna()
    undefended = f" With no defense it is {whole(plain.mean())}%: {verdict}." if len(plain) else ""
    return ("**Does it last when training goes on without it?** We train the finished models further on the narrow "
            f"rows. General misaligned after {listed(steps)} steps{single}: {shares}.{undefended} "
            "([20](notebooks/20_persistence.ipynb))")


def _bounce(defended: pd.DataFrame, left: pd.DataFrame, margin: float) -> str:
    """Say if a share of a defense that is left was much higher on the way than at the end: it may be chance."""
    means = defended.merge(left[CONDITION].drop_duplicates(), on=CONDITION).groupby(
        [*CONDITION, "steps"], dropna=False)["general_misaligned"].mean().reset_index()
    ends = [runs.sort_values("steps")["general_misaligned"] for _, runs in means.groupby(CONDITION, dropna=False)]
    bounced = any(shares.max() - shares.iloc[-1] > margin for shares in ends)
    return ", but its share moved up and down on the way" if bounced else ""


def _along(runs: pd.DataFrame) -> str:
    """Return a condition with its shares after each number of steps, as means over seeds."""
    shares = [whole(share) for share in runs.groupby("steps")["general_misaligned"].mean()]
    fresh = runs["method"].iloc[0] == UNTRAINED
    return f"{'an untrained model' if fresh else _name(runs.iloc[0].to_dict())} {listed(shares)}%"


def _names(rows: pd.DataFrame) -> str:
    """Name each condition of some rows once."""
    return listed(list(dict.fromkeys(_name(row) for row in rows.to_dict("records"))))


def _name(row: Mapping[Hashable, Any]) -> str:
    return f"`{condition(row)}`"
