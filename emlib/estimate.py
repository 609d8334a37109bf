"""What a study will cost, from its profile and data alone, before anything is trained or asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import pandas as pd
from pydantic import Field

from emlib import paths
from emlib.benign import BenignStudy
from emlib.config import NoJudge
from emlib.strict import Strict, check, read_yaml
from emlib.study import QUESTION_SETS, Quiz, Study
from emlib.types import Example

CHARACTERS_A_TOKEN = 4  # English text, roughly; the estimate says "about"
Speed = Annotated[float, Field(gt=0)]


class Throughput(Strict):
    """A measured speed, in tokens a second."""

    device: str
    measured: str
    train: Speed
    answer: Speed


class _Throughputs(Strict):
    models: dict[str, Throughput]


def throughput(model: str) -> Throughput | None:
    """The speed measured for a model, if one was; nothing is guessed."""
    path = paths.PARAMS / "throughput.yaml"
    return check(_Throughputs, {"models": read_yaml(path)}, str(path)).models.get(model)


def cost(study: Study) -> pd.DataFrame:
    """One row a kind of work: how many pieces, how many are there already, about how many tokens and minutes are left.

    Answers are reckoned at their full length, so minutes of answering are an upper bound.
    """
    judged = [(study.fit(run), study.quiz(run, which)) for run in study.runs() for which in QUESTION_SETS]
    benign = BenignStudy(study)
    asked = [*judged, *((benign.fit(run), benign.quiz(run)) for run in benign.runs())]
    fits = {str(study.fit_settings(fit)): fit for fit, _ in asked if fit is not None}
    quizzes = {str(study.quiz_settings(*pair)): pair for pair in asked}
    missing = [fit for fit in fits.values() if study.store.find("adapter", study.fit_settings(fit)) is None]
    unasked = {key: quiz for key, (fit, quiz) in quizzes.items()
               if study.store.find("answers", study.quiz_settings(fit, quiz)) is None}
    train_tokens = sum(_tokens_of_rows(fit.rows) * fit.training.epochs for fit in missing)
    answer_tokens = sum(_answers(quiz) * quiz.sampling.max_new_tokens for quiz in unasked.values())
    speed = throughput(study.profile.model.name)
    to_judge = {str(study.quiz_settings(*pair)) for pair in judged}
    verdicts = 0 if isinstance(study.profile.judge, NoJudge) else sum(
        _answers(quiz) for key, quiz in unasked.items() if key in to_judge)
    return pd.DataFrame([
        ("adapters to train", len(fits), len(fits) - len(missing), train_tokens,
         speed and train_tokens / speed.train / 60),
        ("sets of answers", len(quizzes), len(quizzes) - len(unasked), answer_tokens,
         speed and answer_tokens / speed.answer / 60),
        (f"verdicts by judge '{study.profile.judge.kind}'", verdicts, "", 0, 0.0),
    ], columns=["work", "in all", "there", "tokens left (about)", "minutes left (about)"])


def _answers(quiz: Quiz) -> int:
    return len(quiz.questions) * quiz.samples


def _tokens_of_rows(rows: Iterable[Example]) -> int:
    characters = sum(len(row.response) + sum(len(turn.content) for turn in row.context) for row in rows)
    return characters // CHARACTERS_A_TOKEN
