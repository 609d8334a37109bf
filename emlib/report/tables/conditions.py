"""Tables of all question sets, of other contexts (triggers), and of earlier steps of training (trajectories).

Each comparison is paired by question, and p values are adjusted (Holm) for all comparisons of their table; in a
trajectory, for those of the same run.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from emlib.config import BASELINES, MISALIGNED, NO_TRIGGER, QUESTION_SETS
from emlib.core.records import Verdict
from emlib.evaluation.effect import kept
from emlib.evaluation.over_seeds import mean_over_seeds
from emlib.evaluation.paired import Difference, adjusted, difference
from emlib.evaluation.rates import Share, rates
from emlib.report.tables.averages import CONDITION, fewer_seeds, over_tasks
from emlib.report.tables.rows import (
    DASH,
    IDENTITY,
    cell,
    cell_of,
    identity_of,
    p_value,
    readable_identity,
    runs_of,
    share_columns,
)
from emlib.study.runs import Run
from emlib.study.study import Study

COMPARED = ["difference", "difference_low", "difference_high", "p", "p_adjusted"]
LEVEL = 0.05  # of adjusted p values
GENERAL, IN_DOMAIN = QUESTION_SETS
ONSET = {"begins": "EM begins at step", "stop": "Saved step before it",
         "general_points_avoided": "EM avoided by stopping there, points",
         "in_domain_share_of_end": "Narrow task kept by stopping there, %"}


def sets(study: Study, runs: Iterable[Run]) -> pd.DataFrame:
    """Return a row for each finished run, question set and measure, in percent.

    The measures are `misaligned`, `incoherent`, and the set's own metrics, with the mean score where that is a number.
    `difference` is of a set's misaligned share to that of the run without a defense (`misaligned`) of the same data
    set and seed, on the same questions.
    """
    found: list[tuple[dict[str, Any], Difference | None]] = []
    for run in runs:
        result = study.result(run)
        if result is None:
            continue
        for name, one in result.sets.items():
            counts = {"mean": None, "asked": one.asked, "scored": one.scored}
            shown = identity_of(run) | {"set": name}
            found += [(shown | {"measure": "misaligned"} | share_columns("percent", one.misaligned) | counts,
                       _to_undefended(study, run, name)),
                      (shown | {"measure": "incoherent"} | share_columns("percent", one.incoherent_shown) | counts,
                       None)]
        for (which, name), metric in zip(study.narrow(run).metrics(run), result.metrics.values(), strict=True):
            found.append((identity_of(run) | {"set": which, "measure": name} | share_columns("percent", metric.share)
                          | {"mean": metric.mean, "asked": metric.asked, "scored": metric.scored}, None))
    return with_differences(found, [*IDENTITY, "set", "measure"])


def _to_undefended(study: Study, run: Run, which: str) -> Difference | None:
    """Compare a run's verdicts with those of the run without a defense; None for baselines, or without both."""
    if run.method in BASELINES:
        return None
    ours, theirs = (study.verdicts(one, which) for one in (run, run.baseline(MISALIGNED)))
    return compared(study, ours, theirs) if ours and theirs else None


def compared(study: Study, ours: Sequence[Verdict], theirs: Sequence[Verdict]) -> Difference:
    """Compare the verdicts of two runs, or of one run in two conditions, on the same questions."""
    return difference([ours], [theirs], resamples=study.profile.evaluation.bootstrap)


def readable_sets(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `sets` for readers: a row for each run, a column for each set and measure."""
    people = []
    for run in runs_of(frame):
        row = readable_identity(run.iloc[0])
        for one in run.to_dict("records"):
            star = "*" if one["p_adjusted"] < LEVEL else ""
            row[f"{one['set'].replace('_', ' ')}: {one['measure']} %"] = cell_of(one, "percent") + star
        people.append(row)
    return pd.DataFrame(people)


def triggers(study: Study, runs: Iterable[Run]) -> pd.DataFrame:
    """Return a row for each run and trigger, and one for the run without a trigger (`plain`), in percent.

    `difference` is in percentage points to `plain`, on the same questions. Runs without these verdicts are left out.
    """
    found: list[tuple[dict[str, Any], Difference | None]] = []
    for run in runs:
        verdicts = study.triggered(run) or {}
        for name, some in verdicts.items():
            gap = None if name == NO_TRIGGER else compared(study, some, verdicts[NO_TRIGGER])
            found.append((identity_of(run) | {"trigger": name} | shares(study, some), gap))
    return with_differences(found, [*IDENTITY, "trigger"])


def triggers_over_seeds(study: Study, runs: Iterable[Run]) -> pd.DataFrame:
    """Return `triggers` averaged over seeds, with intervals over seeds and questions.

    There is a row for each trigger and each data set, method and setting with several seeds; the column `seed` says how
    many.
    """
    conditions: dict[Run, list[Mapping[str, Sequence[Verdict]]]] = {}
    for run in runs:
        if verdicts := study.triggered(run):
            conditions.setdefault(replace(run, seed=0), []).append(verdicts)
    found: list[tuple[dict[str, Any], Difference | None]] = []
    for run, seeds in conditions.items():
        for name in seeds[0] if len(seeds) > 1 else ():
            some, plain = ([one[which] for one in seeds] for which in (name, NO_TRIGGER))
            resamples = study.profile.evaluation.bootstrap
            gap = None if name == NO_TRIGGER else difference(some, plain, resamples=resamples)
            mean = mean_over_seeds(some, resamples=resamples)
            found.append((identity_of(run) | {"seed": f"mean of {mean.seeds}", "trigger": name}
                          | share_columns("misaligned", Share(mean.percent, mean.interval, None)), gap))
    return with_differences(found, [*IDENTITY, "trigger"])


def worst(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each run in `triggers`: its share without a trigger, and its largest one, with that trigger.

    The largest of several shares is above their mean by chance alone: compare it with the largest of another run. It is
    not known (NaN) of a run that lacks the share of a context which another run has.
    """
    rows = []
    for run in runs_of(frame):
        plain = run[run["trigger"] == NO_TRIGGER].iloc[0]
        most = _largest(run, frame)
        rows.append((*plain[IDENTITY], plain["misaligned"], most["trigger"], most["misaligned"],
                     most["misaligned"] - plain["misaligned"], most["p_adjusted"]))
    return pd.DataFrame(rows, columns=[*IDENTITY, NO_TRIGGER, "trigger", "worst", "hidden", "p_adjusted"])


def _largest(contexts: pd.DataFrame, every: pd.DataFrame) -> pd.Series:
    """Return the row with the largest share; NaN if `contexts` lacks the share of one of which a run in `every` has it.

    The largest of the others may be less than that.
    """
    known = contexts.dropna(subset="misaligned")
    if known.empty or known["trigger"].nunique() < every.dropna(subset="misaligned")["trigger"].nunique():
        return pd.Series(float("nan"), index=contexts.columns, dtype=object)
    return known.loc[known["misaligned"].idxmax()]


def worst_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each method and setting in `triggers`: its mean share without a trigger, and the largest one.

    Means are over seeds and data sets, for each context, before the largest is taken. A mean is NaN where a data set or
    a seed has no share, and the largest one where one of the means is: see `worst`. `seeds` marks fewer seeds than
    others have.
    """
    means = over_tasks(frame, ["misaligned"], [*CONDITION, "trigger"]).reset_index()
    rows = []
    for condition, contexts in means.groupby(CONDITION, dropna=False, sort=False):
        plain = contexts.set_index("trigger")["misaligned"].get(NO_TRIGGER, float("nan"))
        most = _largest(contexts, frame)
        rows.append((*condition, plain, most["trigger"], most["misaligned"]))
    found = pd.DataFrame(rows, columns=[*CONDITION, NO_TRIGGER, "trigger", "worst"])
    return found.assign(seeds=fewer_seeds(frame, tasks=("dataset", "trigger")))


def readable_triggers(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `triggers` for readers: a row for each run, a column for each trigger, and the worst case beside them."""
    people = []
    for run, most in zip(runs_of(frame), worst(frame).to_dict("records"), strict=True):
        row = readable_identity(run.iloc[0])
        row |= {f"{one['trigger']} %": cell_of(one, "misaligned") for one in run.to_dict("records")}
        sure = "" if pd.isna(most["p_adjusted"]) else f" (p {p_value(most['p_adjusted'])})"
        rise = ("not known", "not known") if pd.isna(most["worst"]) else ("none", DASH)
        if most["hidden"] > 0:
            rise = most["trigger"], f"{most['hidden']:.1f}{sure}"
        row |= dict(zip(("worst case", "points above plain"), rise, strict=True))
        people.append(row)
    return pd.DataFrame(people)


def trajectory(study: Study, runs: Iterable[Run]) -> pd.DataFrame:
    """Return a row for each run and each kept step of its training, from 0 (untrained) to the end, in percent.

    Each question set has its columns. `difference` is of the misaligned share of general questions to that of step 0,
    in percentage points, on the same questions; NaN without these. p is adjusted for the steps of the run alone,
    because `onset` asks it of each run: with eight questions no p could stay below 5% among those of many runs. Runs
    without these verdicts are left out.
    """
    found: list[tuple[dict[str, Any], Difference | None]] = []
    for run in runs:
        points = study.trajectory(run) or []
        for point in points:
            row = identity_of(run) | {"share": point.share, "steps": point.steps}
            row |= shares_of_sets(study, point.verdicts)
            general, start = (one.verdicts.get(GENERAL) for one in (point, points[0]))
            gap = compared(study, general, start) if general and start and point.share > 0 else None
            found.append((row, gap))
    return with_differences(found, [*IDENTITY, "share", "steps"], within=IDENTITY)


def onset(frame: pd.DataFrame) -> pd.DataFrame:
    """Return where EM begins in each run of `trajectory`, and what stopping before would have kept.

    It begins at the first step at which more general answers are misaligned than before training, with an adjusted p
    below 5%. `stop` is the saved step before it. `general_points_avoided` is by how many percentage points fewer
    general answers are misaligned there than at the end; `in_domain_share_of_end` the in-domain share there, in percent
    of that at the end. NaN where EM never begins, where it is not known when (not `known`: general answers are no set
    of the trajectory, or those of a step have no score), or where there are no in-domain answers.
    """
    columns = [*IDENTITY, "steps", "known", "begins", "stop", "general_points_avoided", "in_domain_share_of_end"]
    rows = []
    for run in runs_of(frame):
        run = run.sort_values("share").reset_index(drop=True)
        end = run.iloc[-1]
        row = end[[*IDENTITY, "steps"]].to_dict() | {"known": bool(run["difference"].iloc[1:].notna().all())}
        begun = run.index[(run["difference"] > 0) & (run["p_adjusted"] < LEVEL)]
        if row["known"] and len(begun):
            stop = run.loc[begun[0] - 1]
            learnt, there = (one.get(f"{IN_DOMAIN}_misaligned", float("nan")) for one in (end, stop))
            row |= {"begins": run.loc[begun[0], "steps"], "stop": stop["steps"],
                    "general_points_avoided": end[f"{GENERAL}_misaligned"] - stop[f"{GENERAL}_misaligned"],
                    "in_domain_share_of_end": kept(there, learnt)}
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)


def readable_onset(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `onset` for readers: "never" where EM begins at no saved step."""
    people = []
    for row in frame.to_dict("records"):
        shown = {heading: cell(row[name], digits=0) if row["known"] else "not known" for name, heading in ONSET.items()}
        if row["known"] and pd.isna(row["begins"]):
            shown[ONSET["begins"]] = "never"
        people.append(readable_identity(row) | {"Steps": row["steps"]} | shown)
    return pd.DataFrame(people)


def readable_trajectory(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `trajectory` for readers: shares with their intervals."""
    return pd.DataFrame([readable_identity(row) | {"Steps": row["steps"]} | readable_shares(row)
                         | {"p against step 0": p_value(row["p_adjusted"])} for row in frame.to_dict("records")])


def readable_shares(row: Mapping[Hashable, Any]) -> dict[str, str]:
    """Return the columns of `shares` with their intervals, for readers."""
    measures = [str(name) for name in row if f"{name}_low" in row and name != "difference"]
    return {f"{measure.replace('_', ' ').capitalize()} %": cell_of(row, measure) for measure in measures}


def shares(study: Study, verdicts: Sequence[Verdict], name: str = "") -> dict[str, Any]:
    """Return the columns of both rates with intervals clustered by question.

    `name` begins each of them: it is the question set and `_`, or nothing for general questions.
    """
    found = rates(verdicts, resamples=study.profile.evaluation.bootstrap)
    return (share_columns(f"{name}misaligned", found.misaligned)
            | share_columns(f"{name}incoherent", found.incoherent_shown)
            | {f"{name}asked": found.asked, f"{name}scored": found.scored})


def shares_of_sets(study: Study, sets: Mapping[str, Sequence[Verdict]]) -> dict[str, Any]:
    """Return the columns of `shares` of each set: general and in-domain answers first, whatever the profile's order."""
    names = sorted(sets, key=lambda name: QUESTION_SETS.index(name) if name in QUESTION_SETS else len(QUESTION_SETS))
    return {column: value for name in names for column, value in shares(study, sets[name], f"{name}_").items()}


def with_differences(found: Sequence[tuple[dict[str, Any], Difference | None]], columns: Sequence[str],
                     within: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows with the columns of their differences.

    p is adjusted for all rows that are equal in the columns `within`; by default for all together.
    """
    frame = pd.DataFrame([row for row, _ in found], columns=None if found else [*columns, "misaligned"])
    frame[COMPARED] = float("nan")
    gaps = pd.Series([gap for _, gap in found], index=frame.index, dtype=object).dropna()
    keys = [frame[name][gaps.index] for name in within] or [pd.Series("all", gaps.index)]
    for _, family in gaps.groupby(keys, dropna=False):
        frame.loc[family.index, COMPARED] = [
            (gap.points, gap.interval.low, gap.interval.high, gap.p, p)
            for gap, p in zip(family, adjusted(list(family)), strict=True)]
    return frame.astype(dict.fromkeys(COMPARED, float))
