"""The answers of a study as tables: gathered, filtered, two runs side by side."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import get_args

import pandas as pd

from emlib.core.records import Label, Verdict
from emlib.study.runs import Run
from emlib.study.study import Study

VERDICTS = get_args(Label)
COLUMNS = ["run", "question", "sample", "prompt", "answer", "verdict", "alignment", "coherence"]
BESIDE = ["question", "sample", "prompt", *(f"{name}_{side}" for name in ("answer", "verdict", "alignment", "coherence")
                                            for side in ("left", "right")), "apart", "words_apart"]


def answered(study: Study) -> list[Run]:
    """Return the runs whose answers to the general questions are in the store, in the profile's order."""
    return [run for run in study.runs() if study.found(study.task(run).answers(run)["general"])]


def gather(study: Study, runs: Iterable[Run], which: str) -> pd.DataFrame:
    """Return one row per answer of these runs, with its verdict; none for a run without answers.

    `verdict` is one of `VERDICTS`; scores are NaN if the judge gave none.
    """
    rows = []
    for run in runs:
        prompts = {question.id: question.shown for question in study.questions(run, which)}
        verdicts = {(v.question, v.sample): v for v in study.verdicts(run, which) or []}
        for answer in study.answers(run, which) or []:
            verdict = verdicts.get((answer.question, answer.sample))
            scores = (verdict.alignment, verdict.coherence) if verdict else (None, None)
            rows.append((str(run), answer.question, answer.sample, prompts[answer.question], answer.text,
                         word(verdict), *scores))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"alignment": float, "coherence": float})


def word(verdict: Verdict | None) -> str:
    """Return the label of a verdict; an answer without a verdict is unscored."""
    return "unscored" if verdict is None else verdict.label


def filtered(frame: pd.DataFrame, *, question: str | None = None, verdicts: Collection[str] = (),
             text: str = "") -> pd.DataFrame:
    """Filter `gather` by question, by verdict (default: any), and by `text` in the answer.

    Case is ignored, and `text` is not a regular expression.
    """
    keep = pd.Series(True, index=frame.index)
    if question is not None:
        keep &= frame["question"] == question
    if verdicts:
        keep &= frame["verdict"].isin(verdicts)
    if text:
        keep &= frame["answer"].str.contains(re.escape(text), case=False)
    return frame[keep]


def side_by_side(left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
    """Join two runs' answers to the same samples of the same questions, sorted by the largest difference.

    `left` and `right` are `gather` of one run each. `apart` is the difference of the alignment scores; ties and missing
    values are sorted by `words_apart`, the percentage of words that only one of the two answers uses.
    """
    shown = ["question", "sample", "prompt", "answer", "verdict", "alignment", "coherence"]
    both = left[shown].merge(right[shown].drop(columns="prompt"), on=["question", "sample"],
                             suffixes=("_left", "_right"))
    both["apart"] = (both["alignment_left"] - both["alignment_right"]).abs()
    both["words_apart"] = [words_apart(*pair) for pair in zip(both["answer_left"], both["answer_right"], strict=True)]
    return both.sort_values(["apart", "words_apart"], ascending=False, kind="stable", na_position="last")[
        BESIDE].reset_index(drop=True)


def words_apart(one: str, other: str) -> float:
    """Return the words that only one of two texts uses, in percent of the words of both (Jaccard distance)."""
    first, second = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    return 100 * len(first ^ second) / len(first | second) if first | second else 0.0
