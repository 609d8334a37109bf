"""Tables of auxiliary measures: rates by question or format, a second judge, measures without a judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, get_args

import pandas as pd

from emlib.core.records import Verdict, cluster_of
from emlib.data.sources import label
from emlib.evaluation.agreement import Kappa, Ranks, agreement, rank_correlation
from emlib.evaluation.over_seeds import Kind
from emlib.evaluation.paired import change_of_judge
from emlib.evaluation.rates import Denominator, Share, grouped, rates, rates_by, share_of, unscored_by_reason
from emlib.evaluation.records import AnswerProjection
from emlib.evaluation.statistics import of_mean
from emlib.report.tables.rows import DASH, cell, share_columns
from emlib.study.runs import Opinions, Run
from emlib.study.study import Study


def breakdown(study: Study, run: Run, which: str, *, by: str, of: Denominator = "asked") -> pd.DataFrame:
    """Return a run's rates by "question" or by "format" of the questions; empty if the run is not finished.

    A single question's interval is Wilson's; that of a format is clustered by question.
    """
    questions = {question.id: question for question in study.questions(run, which)}
    group = {"question": lambda v: v.question, "format": lambda v: questions[v.question].format}[by]
    found = rates_by(group, study.verdicts(run, which) or [], of=of, resamples=study.profile.evaluation.bootstrap)
    return pd.DataFrame([
        {by: name, "misaligned %": _share(one.misaligned), "incoherent %": _share(one.incoherent_shown),
         "asked": one.asked, "scored": one.scored} for name, one in found.items()])


def _share(share: Share, digits: int = 1) -> str:
    percent, low, high = share_columns("share", share).values()
    return cell(percent, low, high, digits)


def unscored(study: Study, runs: Iterable[Run]) -> pd.DataFrame:
    """Return the answers that the judge gave no score, counted by run, question set and reason; empty if none lacks it.

    They count as not misaligned in shares of all answers asked for.
    """
    return _by_reason((str(run), which, verdicts) for run in runs for which in study.task(run).evaluation(run)
                      if (verdicts := study.verdicts(run, which)))


def unscored_by_second(found: Sequence[Opinions]) -> pd.DataFrame:
    """Return the answers that the second judge gave no score, counted as `unscored` does."""
    return _by_reason((str(one.run), "general", one.second) for one in found)


def _by_reason(judged: Iterable[tuple[str, str, Sequence[Verdict]]]) -> pd.DataFrame:
    rows = [(run, which, reason, count, len(verdicts)) for run, which, verdicts in judged
            for reason, count in unscored_by_reason(verdicts).items()]
    return pd.DataFrame(rows, columns=["run", "questions", "reason", "answers", "asked"])


def opinions(study: Study, runs: Iterable[Run]) -> list[Opinions]:
    """Return both judges' verdicts on the same answers of each run; empty if the profile has no second judge."""
    if study.profile.second_judge is None:
        return []
    return [found for run in runs if (found := study.opinions(run)) is not None]


def judges_agree(found: Sequence[Opinions]) -> pd.DataFrame:
    """Return the agreement of two judges over all runs: of the labels, of the scores, and of the order of the runs.

    The label is misaligned, incoherent or neither. The order is that of the runs by their misaligned rates. Nothing is
    said of coherence where one of the two does not measure it. Where no answer has both scores, each value is the
    reason. Empty if there is no second judge.
    """
    columns = ["of", "measure", "value", "answers that both scored"]
    if not found:
        return pd.DataFrame(columns=columns)
    both = agreement([v for one in found for v in one.first], [v for one in found for v in one.second])
    compared = f"{both.compared} of {both.asked}"
    coherence = all(v.coherence_judged for one in found for v in (*one.first, *one.second))
    shares = [(rates(one.first).misaligned.percent, rates(one.second).misaligned.percent) for one in found]
    order = rank_correlation([(one, two) for one, two in shares if one is not None and two is not None])
    table = pd.DataFrame([
        ("misaligned", "Cohen's kappa", _kappa(both.misaligned), compared),
        ("incoherent", "Cohen's kappa", _kappa(both.incoherent) if coherence else DASH, compared),
        ("alignment", "Spearman's rank correlation", _rank(both.alignment), f"{both.alignment.pairs} of {both.asked}"),
        ("coherence", "Spearman's rank correlation", _rank(both.coherence) if coherence else DASH,
         f"{both.coherence.pairs} of {both.asked}"),
        ("label", "raw agreement %", _share(both.same), compared),
        (f"order of {len(found)} runs", "Spearman's rank correlation", _rank(order), compared),
    ], columns=columns)
    return table if both.compared else table.assign(value=f"{DASH} ({_nothing_compared(found)})")


def _nothing_compared(found: Sequence[Opinions]) -> str:
    """Return why no answer has the scores of both judges."""
    for judge, verdicts in (("second", [v for one in found for v in one.second]),
                            ("first", [v for one in found for v in one.first])):
        if verdicts and not any(v.scored for v in verdicts):
            return f"the {judge} judge scored none: {next(iter(unscored_by_reason(verdicts)))}"
    return "no answer has the scores of both"


def _kappa(kappa: Kappa) -> str:
    if kappa.value is None:
        return f"{DASH} (both gave one label to all)"
    reason = "one gave one label to all" if kappa.value == 0 else "no interval: its variance is 0"
    return cell(kappa.value, kappa.low, kappa.high, digits=2) + (f" ({reason})" if kappa.low is None else "")


def _rank(found: Ranks) -> str:
    if found.value is None:
        return f"{DASH} ({'too few' if found.pairs < 2 else 'one gave one score to all'})"
    return f"{found.value:.2f}"


def rates_under_both(found: Sequence[Opinions]) -> pd.DataFrame:
    """Return each run's rates on the same answers under both judges, and the change in percentage points.

    A judge that does not measure coherence has no incoherent share. The interval of the change resamples whole
    questions (`change_of_judge`).
    """
    return pd.DataFrame([_under_both(one) for one in found])


def _under_both(one: Opinions) -> dict[str, Any]:
    first, second = rates(one.first), rates(one.second)
    row: dict[str, Any] = {"run": str(one.run)}
    for kind in get_args(Kind):
        before, after = ((each.misaligned if kind == "misaligned" else each.incoherent_shown)
                         for each in (first, second))
        row |= {f"{kind} %, first": _share(before), f"{kind} %, second": _share(after),
                f"{kind}: change": None, f"{kind}: 95% interval": DASH}
        if before.percent is not None and after.percent is not None:
            gap = change_of_judge(one.first, one.second, kind)
            row |= {f"{kind}: change": after.percent - before.percent,
                    f"{kind}: 95% interval": f"[{gap.low:.1f}, {gap.high:.1f}]"}
    return row | {"asked": first.asked, "scored by the second": second.scored}


def points(found: Sequence[Opinions]) -> pd.DataFrame:
    """Return one row per answer with both judges' scores; NaN if a judge gave none, or does not measure coherence."""
    return pd.DataFrame([
        {"run": one.run.method, "question": first.question, "sample": first.sample,
         **_scores("first", first), **_scores("second", second)}
        for one in found for first, second in zip(one.first, one.second, strict=True)])


def _scores(name: str, verdict: Verdict) -> dict[str, float | None]:
    return {f"alignment, {name}": verdict.alignment,
            f"coherence, {name}": verdict.coherence if verdict.coherence_judged else None}


def by_run(study: Study, runs: Iterable[Run]) -> pd.DataFrame:
    """Return each run's judged rate and its measures without a judge: the profile's projection and multiple choice.

    Projections are means over general answers with the interval of a bootstrap over questions. Multiple choice: the
    share of questions whose most likely option is right (MC1; or shows the behaviour), and the mean probability of such
    options (MC2), in percent.
    """
    rows, evaluation = [], study.profile.evaluation
    for run in runs:
        result = study.result(run)
        row = {"run": str(run), "general misaligned %": DASH if result is None else _share(result.general.misaligned)}
        if evaluation.projection_layer is not None:
            row[f"projection, layer {evaluation.projection_layer}"] = _projection(study.projected(run) or [])
        for source in evaluation.choices:
            made, name = study.choices(run, source) or [], label(source)
            row[f"{name}: likeliest right %"] = _share(share_of([[one.picked] for one in made]))
            row[f"{name}: probability on right %"] = _share(share_of([[one.share] for one in made]))
        rows.append(row)
    return pd.DataFrame(rows)


def _projection(projected: Sequence[AnswerProjection]) -> str:
    if not projected:
        return DASH
    interval = of_mean([[one.value for one in group] for group in grouped(cluster_of, projected).values()])
    return _share(Share(fmean(one.value for one in projected), interval), 2)
