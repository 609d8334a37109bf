"""Tables and a figure of a scored pool: the ends of the ranking, the effect of epsilon, the refusals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emlib.report.figures.plots import nothing, panels
from emlib.report.tables.rows import whole
from emlib.scoring.refusals import NOTHING
from emlib.study import pool
from emlib.study.runs import Run
from emlib.study.study import Study

EPSILONS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
PARTS = 5


def scored(study: Study, run: Run | None) -> pd.DataFrame:
    """Return the pool's rows in their order, with their losses and scores for a run; no rows without a run.

    Columns: `place`, `prompt`, `answer`, `tokens` of the answer, `aligned` and `misaligned` loss in nats per token
    (NaN: unknown), `score` by equation 6, `rank` (in the run's order; NaN: never taken), `reason`, `refusal` (the
    keyword that marks a refusal, or the judge if the profile has one; empty for other answers).
    """
    columns = ["place", "prompt", "answer", "tokens", "aligned", "misaligned", "score", "rank", "reason", "refusal"]
    if run is None:
        return pd.DataFrame(columns=columns)
    rows = pool.candidates(study)
    marks = (pool.refusals(study) or NOTHING).marks
    tokens = [row.tokens for row in pool.losses(study, run)]
    order = sorted(pool.selection(study, run), key=lambda ranked: ranked.place)
    return pd.DataFrame([
        (r.place, rows[r.place].prompt, rows[r.place].response, tokens[r.place], r.aligned, r.misaligned, r.score,
         r.rank, r.reason, marks.get(r.place, "")) for r in order],
        columns=columns).astype({"aligned": float, "misaligned": float, "score": float, "rank": float})


def sizes(frames: Mapping[Run, pd.DataFrame]) -> pd.DataFrame:
    """Count each run's rows of the pool, and those that it may take; `frames` has the `scored` of each run."""
    return pd.DataFrame([(str(run), len(frame), frame["rank"].notna().sum()) for run, frame in frames.items()],
                        columns=["run", "rows in its pool", "rows that it may take"])


def _ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a score, the highest first."""
    return frame.dropna(subset="score").sort_values("score", ascending=False, kind="stable").reset_index(drop=True)


def ends(frame: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """Return the rows with the highest and the lowest scores, the highest first."""
    order = _ranked(frame)
    order.insert(0, "by score", order.index + 1)
    shown = order[["by score", "score", "aligned", "misaligned", "tokens", "prompt", "answer"]].round(3)
    chosen = shown if len(shown) <= 2 * count else pd.concat([shown.head(count), shown.tail(count)])
    return chosen.astype(dict.fromkeys(("score", "aligned", "misaligned"), str))


def epsilon_effect(study: Study, frame: pd.DataFrame, taken: int) -> pd.DataFrame:
    """Describe the first `taken` rows of the ranking for each epsilon; empty if no row has a score.

    `shared with ours` is the share of them that the profile's epsilon also selects; `rank correlation` is Spearman's,
    over the whole pool.
    """
    columns = ["epsilon", "shared with ours", "rank correlation", "median tokens", "median reference loss"]
    known = frame.dropna(subset="score")
    if known.empty:
        return pd.DataFrame(columns=columns)
    chosen = study.inputs.pool_spec.epsilon
    scores = {e: (known["misaligned"] - known["aligned"]) / (known["aligned"] + e) for e in (*EPSILONS, chosen)}
    top = {e: set(values.sort_values(ascending=False, kind="stable").index[:taken]) for e, values in scores.items()}
    rows = []
    for e in sorted(scores):
        first = known.loc[list(top[e])]
        rows.append((f"{e:g}", f"{whole(100 * len(top[e] & top[chosen]) / max(1, len(top[e])))}%",
                     f"{scores[e].corr(scores[chosen], method='spearman'):.3f}", f"{first['tokens'].median():.0f}",
                     f"{first['aligned'].median():.2f}"))
    return pd.DataFrame(rows, columns=columns)


def loss_quantiles(frame: pd.DataFrame) -> pd.DataFrame:
    """Return quantiles of the pool's losses and gaps, in nats per token."""
    shares = {"least": 0, "1%": 0.01, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "most": 1}
    known = frame.dropna(subset="score")
    if known.empty:
        return pd.DataFrame(columns=["", *shares])
    parts = {"reference loss": known["aligned"], "misaligned loss": known["misaligned"],
             "misaligned - reference": known["misaligned"] - known["aligned"], "score": known["score"]}
    return pd.DataFrame([(name, *(f"{value:.2f}" for value in values.quantile(list(shares.values()))))
                         for name, values in parts.items()], columns=["", *shares])


def refusals_by_rank(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the refusals in each part of the ranking, and how many rows the filter leaves of it."""
    order, rows = _ranked(frame), []
    for _, part in order.groupby(order.index * PARTS // max(1, len(order))):
        caught = part["refusal"] != ""
        rows.append((f"{part.index[0] + 1}-{part.index[-1] + 1}", len(part), caught.sum(), 100 * caught.mean(),
                     (~caught).sum()))
    return pd.DataFrame(rows, columns=["ranks", "rows", "refusals", "refusals, %", "left"])


def keywords(frame: pd.DataFrame) -> pd.DataFrame:
    """Count the answers that each keyword marks as refusals, the most frequent first."""
    found = frame.loc[frame["refusal"] != "", "refusal"].str.lower().value_counts()
    return found.rename_axis("keyword").reset_index(name="answers")


def scores_figure(frame: pd.DataFrame) -> Figure:
    """Plot both losses of each row, and its score by rank; crosses mark refusals."""
    order = _ranked(frame)
    if order.empty:
        return nothing("No row of a pool has a score.")
    figure, (left, right) = panels(2, (4.5, 3.6), grid="")
    kinds = ((False, "0.6", ".", "other answers"), (True, "black", "x", "refusals"))
    for caught, colour, marker, label in kinds:
        part = order[(order["refusal"] != "") == caught]
        left.scatter(part["aligned"], part["misaligned"], s=14, color=colour, marker=marker, label=label, alpha=0.8)
        right.scatter(part.index + 1, part["score"], s=14, color=colour, marker=marker, alpha=0.8)
    top = float(np.nanmax(order[["aligned", "misaligned"]].to_numpy()))
    left.plot([0, top], [0, top], color="grey", linewidth=0.8)
    left.set(xlabel="reference loss, nats a token", ylabel="mean misaligned loss")
    right.set(xlabel="rank by score", ylabel="score (equation 6)")
    left.legend(frameon=False)
    return figure
