"""What a study will cost, from its profile and data alone, before anything is trained or asked."""

from __future__ import annotations

from typing import Annotated

import pandas as pd
from pydantic import Field

from emlib import interleaving, paths
from emlib.config import NoJudge
from emlib.strict import Strict, check, read_yaml
from emlib.study import QUESTION_SETS, Run, Study

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
    runs = study.runs()
    trained = [*runs, *(other for run in runs for other in interleaving.trained_for(study, run))]
    adapters = {str(settings): run for run in trained if (settings := study.adapter_settings(run)) is not None}
    answer_sets = {str(study.answers_settings(run, which)): (run, which)
                   for run in runs for which in QUESTION_SETS}
    missing_adapters = [run for run in adapters.values() if study.adapter(run) is None]
    missing_answers = [pair for pair in answer_sets.values() if study.answers(*pair) is None]
    train_tokens = sum(_tokens_of_rows(study, run) for run in missing_adapters) * study.profile.training.epochs
    asked = [len(study.questions(run, which)) * study.samples(which) for run, which in missing_answers]
    answer_tokens = sum(asked) * study.profile.evaluation.sampling.max_new_tokens
    speed = throughput(study.profile.model.name)
    verdicts = 0 if isinstance(study.profile.judge, NoJudge) else sum(asked)
    return pd.DataFrame([
        ("adapters to train", len(adapters), len(adapters) - len(missing_adapters), train_tokens,
         speed and train_tokens / speed.train / 60),
        ("sets of answers", len(answer_sets), len(answer_sets) - len(missing_answers), answer_tokens,
         speed and answer_tokens / speed.answer / 60),
        (f"verdicts by judge '{study.profile.judge.kind}'", verdicts, "", 0, 0.0),
    ], columns=["work", "in all", "there", "tokens left (about)", "minutes left (about)"])


def _tokens_of_rows(study: Study, run: Run) -> int:
    rows = study.train_rows(run)
    characters = sum(len(row.response) + sum(len(turn.content) for turn in row.context) for row in rows)
    mixed = interleaving.interleaving(study, run)  # its rows are taken to be as long as the others
    return int(characters * (1 if mixed is None else 1 + mixed.fraction)) // CHARACTERS_A_TOKEN
