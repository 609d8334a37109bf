"""Tables of methods compared question by question, and of their means over seeds, from a study's verdicts.

`emlib.evaluation.paired` and `emlib.evaluation.over_seeds` compute the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import pandas as pd

from emlib.config import QUESTION_SETS
from emlib.config.methods import Method
from emlib.core.records import Verdict
from emlib.defenses.interleaving import Interleaving
from emlib.evaluation.over_seeds import Kind, all_scored, mean_over_seeds
from emlib.evaluation.paired import Difference, adjusted, difference
from emlib.evaluation.rates import NO_SHARE, Share, grouped
from emlib.evaluation.statistics import RESAMPLES, wilson
from emlib.report.paper.published import CHOSEN, INTERLEAVING, REFERENCES
from emlib.report.tables.rows import share_columns
from emlib.study.runs import RunResult
from emlib.study.study import Study

Trained = tuple[str, str, float | None]  # data set, method, setting
Verdicts = Mapping[Trained, Mapping[int, Sequence[Verdict]]]  # ... and by seed
PAIR_COLUMNS = ["dataset", "method", "setting", "against", "against_setting", "seeds", "questions", "difference", "low",
                "high", "p", "p_adjusted"]
TRAINED = ["dataset", "method", "setting"]
MEAN_COLUMNS = [*TRAINED, "set", "seeds", "questions", "percent", "low", "high"]


def scored_verdicts(study: Study, which: str = "general") -> Verdicts:
    """Return the verdicts of all finished runs by data set, method and setting, and by seed.

    A condition of which no run has a score is left out. A seed without one stays among others: the mean with it is not
    known.
    """
    found: dict[Trained, dict[int, list[Verdict]]] = {}
    for run in study.runs():
        if verdicts := study.verdicts(run, which):
            found.setdefault((run.task, run.method, run.setting), {})[run.seed] = verdicts
    return {trained: seeds for trained, seeds in found.items() if any(all_scored([one]) for one in seeds.values())}


def scored_sets(study: Study) -> dict[str, Verdicts]:
    """Return `scored_verdicts` of the general questions, and of each other question set that has some."""
    names = (*QUESTION_SETS, *study.profile.evaluation.sets)
    found = {name: scored_verdicts(study, name) for name in names}
    return {name: verdicts for name, verdicts in found.items() if verdicts or name == "general"}


def over_seeds(sets: Mapping[str, Verdicts], *, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Average each (data set, method, setting) over its seeds, with 95% intervals over seeds and questions.

    `sets` has the verdicts of each question set, by its name; the frame has a row for each set. `resamples` are those
    of the bootstrap (`evaluation.bootstrap` of a profile); with one seed the interval is that of `rates`. A mean is NaN
    where a seed has no score.
    """
    means = [(trained, name, mean_over_seeds(list(seeds.values()), resamples=resamples))
             for name, verdicts in sets.items() for trained, seeds in verdicts.items()]
    return pd.DataFrame([(*trained, name, mean.seeds, mean.questions, mean.percent, mean.interval.low,
                          mean.interval.high) for trained, name, mean in means], columns=MEAN_COLUMNS)


def in_columns(means: pd.DataFrame) -> pd.DataFrame:
    """Return `over_seeds` with a row for each data set, method and setting, as `means` has them.

    `seeds` are those of the question set with the fewest.
    """
    rows = []
    for trained, some in means.groupby(TRAINED, sort=False, dropna=False):
        rows.append(dict(zip(TRAINED, trained, strict=True)) | {"seeds": some["seeds"].min()} | {
            f"{row['set']}_misaligned{end}": row[name] for row in some.to_dict("records")
            for end, name in (("", "percent"), ("_low", "low"), ("_high", "high"))})
    return pd.DataFrame(rows, columns=None if rows else TRAINED)


def means(study: Study, results: Sequence[RunResult]) -> pd.DataFrame:
    """Average results over their seeds: a row for each data set, method and setting, in percent of the answers asked.

    `seeds` is the number of runs. Each question set has the columns `<set>_misaligned` and `<set>_incoherent`, with
    `_low` and `_high`, as in `result_tables.numbers`. The intervals of several seeds are those of `over_seeds`; that of
    one run is the run's own, which is the same, so that it may be a run that was tried by hand. A run counts once,
    however often it is among the results. A share is NaN where one of the seeds has none.
    """
    groups: dict[Trained, list[RunResult]] = {}
    for result in {one.run: one for one in results}.values():
        groups.setdefault((result.run.task, result.run.method, result.run.setting), []).append(result)
    rows = []
    for trained, found in groups.items():
        run = found[0].run
        seed = run.seed if len(found) == 1 else f"mean of {len(found)}"
        row: dict[str, Any] = {"model": run.model} | dict(zip(TRAINED, trained, strict=True)) | {
            "seed": seed, "seeds": len(found)}
        for name in found[0].sets:
            row |= share_columns(f"{name}_misaligned", _mean(study, found, name, "misaligned"))
            judged = all(result.sets[name].coherence_judged for result in found)
            row |= share_columns(f"{name}_incoherent", _mean(study, found, name, "incoherent") if judged else NO_SHARE)
        rows.append(row)
    return pd.DataFrame(rows)


def _mean(study: Study, found: Sequence[RunResult], which: str, kind: Kind) -> Share:
    """Return the mean share over the runs of one condition; not known if one of them has no score."""
    if not all(result.sets[which].scored for result in found):
        return NO_SHARE
    if len(found) == 1:
        own = found[0].sets[which]
        return own.misaligned if kind == "misaligned" else own.incoherent_shown
    mean = mean_over_seeds([study.verdicts(result.run, which) or [] for result in found], kind,
                           resamples=study.profile.evaluation.bootstrap)
    return Share(mean.percent, mean.interval)


def paired(verdicts: Verdicts, methods: Iterable[Method], *, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Subtract each of `REFERENCES` from each method on the same questions and seeds, in percentage points.

    p is adjusted (Holm) within the frame. `partners` says what is compared; `methods` are those of the profile. Seeds
    that only one of the two has are left out. `resamples` are those of the bootstrap (`evaluation.bootstrap` of a
    profile).
    """
    found: list[tuple[Trained, Trained, Difference]] = []
    for trained, other in partners(verdicts, methods):
        seeds = verdicts[trained]
        if shared := sorted(seeds.keys() & verdicts[other].keys()):
            found.append((trained, other, difference(
                [seeds[seed] for seed in shared], [verdicts[other][seed] for seed in shared], resamples=resamples)))
    corrected = adjusted([gap for _, _, gap in found])
    return pd.DataFrame([
        (*trained, *other[1:], gap.seeds, gap.questions, gap.points, gap.interval.low, gap.interval.high, gap.p, p)
        for (trained, other, gap), p in zip(found, corrected, strict=True)], columns=PAIR_COLUMNS)


def partners(there: Iterable[Trained], methods: Iterable[Method]) -> list[tuple[Trained, Trained]]:
    """Return each method with each of `REFERENCES` that it is compared with, on its data set.

    A method that interleaves rows is compared with `interleaving` at the same fraction, and with nothing if that was
    not run; any other method at the paper's (`published.CHOSEN`), otherwise at the lowest.
    """
    known = {method.name: method for method in methods}
    fractions = {trained: _fraction(known.get(trained[1]), trained[2]) for trained in there}
    return [(trained, other) for reference in REFERENCES for trained in fractions
            if (other := _partner(trained, reference, fractions)) is not None]


def _fraction(method: Method | None, setting: float | None) -> float | None:
    """Return the share of rows that a method interleaves, also one that it does not sweep; None if it adds none."""
    defenses = method.at(setting) if method else ()
    return next((defense.fraction for defense in defenses if isinstance(defense, Interleaving)), None)


def _partner(trained: Trained, reference: str, fractions: Mapping[Trained, float | None]) -> Trained | None:
    """Return what `trained` is compared with; None if there is none, or for the reference itself."""
    dataset, method, _ = trained
    runs = [each for each in fractions if each[:2] == (dataset, reference)]
    if method == reference or not runs:
        return None
    own = fractions[trained] if reference in INTERLEAVING else None
    wanted = CHOSEN.get(reference) if own is None else own
    same = next((each for each in runs if fractions[each] == wanted), None)
    return min(runs, key=lambda each: fractions[each] or 0.0) if same is None and own is None else same


def question_shares(verdicts: Verdicts, dataset: str, methods: Sequence[str]) -> pd.DataFrame:
    """Return the share of misaligned answers to each question, for `paper_figures.by_question`.

    Settings and seeds are pooled. Columns: question, method, percent, low, high (Wilson's 95% interval, because the
    question is fixed); NaN where one of the runs has no score.
    """
    rows = []
    for method in methods:
        runs = [run for (where, name, _), seeds in verdicts.items() if (where, name) == (dataset, method)
                for run in seeds.values()]
        for question, answers in grouped(lambda one: one.question, chain(*runs)).items():
            count = sum(bool(verdict.misaligned) for verdict in answers)
            interval = wilson(count, len(answers))
            rows.append((question, method, *((100 * count / len(answers), interval.low, interval.high)
                                             if all_scored(runs) else [float("nan")] * 3)))
    return pd.DataFrame(rows, columns=["question", "method", "percent", "low", "high"])
