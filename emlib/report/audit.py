"""The audit of training rows: single rows, data sets with the rates that followed, a prediction, and its figure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from statistics import fmean

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emlib.config import load_domains
from emlib.core import paths
from emlib.core.digests import of_value
from emlib.evaluation.prediction import leave_one_out, line
from emlib.evaluation.rates import Share
from emlib.evaluation.statistics import auroc
from emlib.report.figures.labels import Label, place
from emlib.report.figures.looks import NEUTRAL, darkened, look_of
from emlib.report.figures.plots import legend, panels, spans
from emlib.report.tables.rows import (
    IDENTITY,
    cell,
    cell_of,
    identity_of,
    named,
    readable_identity,
    share_columns,
    whole,
)
from emlib.study import audit
from emlib.study.ownership import base_of
from emlib.study.results import read_table
from emlib.study.runs import Run
from emlib.study.study import Study

NAME = "audit"
COLUMNS = ["model", *IDENTITY, "vector", "layer", "rows", "audited", "difference", "difference_low", "difference_high",
           "steps", "misaligned", "misaligned_low", "misaligned_high", "in_domain", "predicted", "error",
           "error_of_mean", "adapter", "rated_by", "file_rows"]
TWINS = ["dataset", "method", "setting"]  # runs with the same of these are seeds of one training, in whatever study
MISSING = float("nan")


def ranked(study: Study, run: Run | None) -> pd.DataFrame:
    """Return the audited rows of a run's data set by their projection difference, the largest first; None: no rows.

    Columns: `rank`, `place` among the training rows, `difference`, the projections `given` of the row's answer and
    `own` of the base model's, `prompt`, `answer`, and the model's `own answer`.
    """
    rows = []
    if run is not None:
        spec = study.training(run)
        assert spec is not None, "only trained runs are audited"
        examples = spec.rows.examples
        rows = [(row.place, row.difference, row.given, row.own, examples[row.place].prompt,
                 examples[row.place].response, row.answer) for row in study.read(audit.steps(study, run)[0]) or []]
    columns = ["place", "difference", "given", "own", "prompt", "answer", "own answer"]
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.dropna(subset="difference").sort_values("difference", ascending=False, kind="stable")
    frame.insert(0, "rank", np.arange(1, len(frame) + 1))
    return frame.reset_index(drop=True)


def ends(frame: pd.DataFrame, count: int = 5, characters: int = 300) -> pd.DataFrame:
    """Return the `count` worst rows of `ranked` and as many of the others' end, with texts cut to `characters`."""
    shown = frame if len(frame) <= 2 * count else pd.concat([frame.head(count), frame.tail(count)])
    texts = ("prompt", "answer", "own answer")
    return shown.drop(columns="place").assign(**{name: shown[name].str[:characters] for name in texts})


def separation(worse: pd.DataFrame, better: pd.DataFrame) -> str:
    """State how well the difference tells the rows of two `ranked` data sets apart."""
    if worse.empty or better.empty:
        return "There are no audited rows of both sides, so it is not known whether the audit tells them apart."
    share, _ = auroc(worse["difference"].tolist(), better["difference"].tolist())
    return f"AUROC {share:.2f}: {len(worse)} misaligned rows against {len(better)} aligned rows."


def table(study: Study, runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row for each run whose training rows are audited: the mean difference, the rate, and its prediction.

    `rows` is the number of rows that the run is trained on, and `audited` that of the rows among them that `difference`
    is the mean of, with a 95% interval over rows. `misaligned` is the run's general rate in percent, NaN until it is
    finished, and `in_domain` its in-domain rate. `predicted` is the general rate by the line through the table's runs
    on other rows, and `error` how far that is from `misaligned`; `error_of_mean` is the error of these runs' mean rate.
    `adapter` is the trained adapter's key, `rated_by` is `rating`, and `file_rows` a digest of all rows of the data
    set's file.
    """
    rows, rated_by, digest_of_file = [], rating(study), cache(study.inputs.digest_of_file)
    for run in runs:
        found, result, adapter = audit.difference(study, run), study.result(run), study.adapter(run)
        if found is None or study.profile.audit is None:
            continue
        narrow = None if result is None else result.in_domain.misaligned.percent
        rows.append({"model": run.model, **identity_of(run), "vector": study.recipes.vector().key,
                     "layer": study.profile.audit.layer, "rows": found.rows, "audited": found.audited,
                     **share_columns("difference", Share(found.mean, found.interval, None)),
                     "steps": adapter.facts["steps"] if adapter else None,
                     **share_columns("misaligned", result.general.misaligned if result else None),
                     "in_domain": MISSING if narrow is None else narrow,
                     "adapter": study.task(run).adapter(run).key, "rated_by": rated_by,
                     "file_rows": digest_of_file(run.task)})
    return with_predictions(pd.DataFrame(rows, columns=COLUMNS))


def rating(study: Study) -> str:
    """Return a digest of what rates and differences are of, besides the rows.

    Of a rate: the general questions, the judge and its criteria, and how answers are sampled. Of a difference: how the
    untrained model's own answers are sampled, and how many to a row. Seeds and the size of batches change neither.
    """
    questions, audited = study.inputs.general, study.profile.audit
    sampled = [one.sampling.model_dump(mode="json", exclude={"batch_rows"})
               for one in (study.profile.evaluation, audited) if one is not None]
    return of_value([questions.identity, study.recipes.assessment.of(questions), sampled, audited and audited.samples])


def with_predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its columns `predicted`, `error` and `error_of_mean` computed by leaving out one run.

    With a run, those on the same rows are left out, and its other seeds, whose rows may differ a little.
    """
    known = frame.dropna(subset=["difference", "misaligned"])
    named = [name for name in TWINS if name in known]
    found = leave_one_out(known["difference"].tolist(), known["misaligned"].tolist(),
                          known.groupby(named, dropna=False).ngroup().tolist())
    by_line, by_mean = (pd.Series([MISSING if one is None else getattr(one, name) for one in found], index=known.index,
                                  dtype=float) for name in ("by_line", "by_mean"))
    return frame.assign(predicted=by_line, error=(by_line - known["misaligned"]).abs(),
                        error_of_mean=(by_mean - known["misaligned"]).abs())


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Format `table` for readers."""
    return pd.DataFrame([readable_identity(row) | {
        "Rows": row["rows"], "Audited": row["audited"], "Projection difference": cell_of(row, "difference", digits=2),
        "General misaligned %": cell_of(row, "misaligned"), "In-domain misaligned %": cell(row["in_domain"]),
        "Predicted general %": cell(row["predicted"]), "Error, points": cell(row["error"])}
        for row in frame.to_dict("records")])


def elsewhere(study: Study) -> pd.DataFrame:
    """Return the finished rows of `tables/audit.csv` of all other studies here that can be compared with this one's.

    These have its model, vector and layer, and rates and differences of the same (`rating`). Studies share runs,
    so that an adapter may be in several tables; here it is one row. Data sets have their `names_of_sets`.
    """
    spec, key = study.profile.audit, study.recipes.vector().key
    assert spec is not None, "the profile has a section 'audit'"
    files = [path for path in sorted(paths.runs().glob(f"*/tables/{NAME}.csv")) if path.parts[-3] != study.name]
    frames = [read_table(path).assign(study=path.parts[-3]) for path in files]
    found = (pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()).reindex(columns=[*COLUMNS, "study"])
    same = (found["vector"] == key) & (found["layer"] == spec.layer) & (found["rated_by"] == rating(study))
    one = found[same].dropna(subset=["misaligned", "adapter"]).drop_duplicates("adapter", ignore_index=True)
    return one.assign(dataset=names_of_sets(one))


def names_of_sets(frame: pd.DataFrame) -> list[str]:
    """Return the name of each row's data set: one name for one file, whatever studies call it, and for no other.

    A data set that a profile brings is named with the digest of its file's rows, `own (1a2b3c4d)`, because another
    study's of this name may have other rows; with its study where an earlier version wrote the table, without digests.
    If its rows are those of a data set that ships with emlib, it has that one's name.
    """
    shipped = load_domains()
    rows = [(name, digest if isinstance(digest, str) else "", study)
            for name, digest, study in zip(frame["dataset"], frame["file_rows"], frame["study"], strict=True)]
    names = {digest: f"{name} ({digest[:8]})" for name, digest, _ in rows}
    names |= {digest: name for name, digest, _ in rows if name in shipped}
    return [name if name in shipped else names[digest] if digest else f"{name} ({base_of(study)})"
            for name, digest, study in rows]


def expected(study: Study, runs: Sequence[Run]) -> str:
    """State what other studies here predict for the first of these audited runs; empty without an audited run."""
    found = audit.difference(study, runs[0]) if runs else None
    return statement(elsewhere(study), found.mean) if found else ""


def statement(known: pd.DataFrame, at: float | None = None) -> str:
    """State how well the line predicts the rates of `known`, and what it predicts `at` a mean difference."""
    points = known.dropna(subset=["difference", "misaligned"])
    fitted = line(points["difference"].tolist(), points["misaligned"].tolist())
    errors = with_predictions(points).dropna(subset="error")
    if fitted is None or errors.empty:
        return (f"There {'is' if len(points) == 1 else 'are'} {len(points)} finished "
                f"run{'' if len(points) == 1 else 's'} whose training rows are audited, with this persona vector: a "
                "prediction takes three with different rows.")
    sets = points["dataset"].nunique()
    basis = (f"The line through {len(points)} runs on {sets} data set{'' if sets == 1 else 's'} rises by "
             f"{fitted.slope:.1f} points of misaligned general answers for each unit of projection difference. "
             "How good is it? We leave out each run in turn, and with it its other seeds and the runs on the same "
             f"rows, and predict its rate from the others: the error is {whole(fmean(errors['error']))} points on "
             f"average and {whole(errors['error'].max())} at most. Predicting the mean of the others instead has an "
             f"error of {whole(fmean(errors['error_of_mean']))} points on average.")
    if at is None:
        return basis
    low, high = points["difference"].min(), points["difference"].max()
    beyond = "" if low <= at <= high else f" No run was trained on such rows: theirs are at {low:.2f} to {high:.2f}."
    return (f"At a mean difference of {at:.2f} it predicts {whole(fitted.at(at))}% misaligned general answers after "
            f"training like theirs.{beyond} {basis}")


def rate_against_difference(frame: pd.DataFrame) -> Figure:
    """Plot each run's general rate over the mean projection difference of its training rows, and the line through them.

    `frame` is `table`. Bars are 95% intervals, over rows and over questions. Hollow marks are what the
    line through the other runs predicts.
    """
    shown = frame.dropna(subset=["difference", "misaligned"])
    figure, [axis] = panels(1, (6, 4.2), around=(0, 0.8))
    for row in shown.to_dict("records"):
        colour, marker, _ = look_of(row["method"])
        one = pd.DataFrame([row])
        xbar, ybar = (spans(one, name) for name in ("difference", "misaligned"))
        axis.errorbar(row["difference"], row["misaligned"], xerr=xbar, yerr=ybar, marker=marker, color=colour,
                      capsize=2, elinewidth=0.8)
    axis.plot([], [], "o", color=NEUTRAL, label="measured after training, with 95% intervals")
    axis.plot(shown["difference"], shown["predicted"], "o", color=NEUTRAL, markerfacecolor="white", markersize=5,
              label="predicted from the other runs")
    fitted = line(shown["difference"].tolist(), shown["misaligned"].tolist())
    if fitted is not None:
        x = fitted.corners(shown["difference"].min(), shown["difference"].max())
        axis.plot(x, [fitted.at(one) for one in x], color="0.5", linestyle="--", linewidth=1,
                  label="line through all runs, cut at 0 and 100%")
    axis.set(xlabel="mean projection difference of the training rows", ylim=(-4, 104),
             ylabel="general misaligned, %")
    legend(figure, 1)
    several = shown["dataset"].nunique() > 1
    place(axis, [Label(row["difference"], row["misaligned"], named(row) + (f", {row['dataset']}" if several else ""),
                       darkened(row["method"])) for row in shown.to_dict("records")], 8)
    return figure
