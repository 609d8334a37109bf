"""What a study will cost, from its profile and data alone, before anything is trained or asked.

Notebook 00 and `make plan` show it.

    python -m emlib.estimate demo        # the tables of notebook 00, in the terminal
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import pandas as pd
from pydantic import Field

from emlib import interleaving, paths
from emlib.benign import BenignStudy
from emlib.config import NoJudge, OpenAIJudge
from emlib.errors import EmlibError
from emlib.judging.judges import reads
from emlib.judging.money import CHARACTERS_A_TOKEN, likely_tokens, price_list
from emlib.judging.rubrics import METRICS
from emlib.strict import Strict, check, read_yaml
from emlib.study import QUESTION_SETS, Fit, QuestionSet, Run, Study, open_study

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
    benign = BenignStudy(study)
    asked = [*((study.fit(run), study.quiz(run, which)) for run in study.runs() for which in QUESTION_SETS),
             *((benign.fit(run), benign.quiz(run)) for run in benign.runs())]
    fits = _every([fit for fit, _ in asked if fit is not None], study)
    quizzes = {str(study.quiz_settings(*pair)): pair for pair in asked}
    missing = [fit for fit in fits if study.store.find("adapter", study.fit_settings(fit)) is None]
    unasked = [quiz for fit, quiz in quizzes.values()
               if study.store.find("answers", study.quiz_settings(fit, quiz)) is None]
    train_tokens = sum(_tokens_of_rows(fit) * fit.training.epochs for fit in missing)
    answer_tokens = sum(len(quiz.questions) * quiz.samples * quiz.sampling.max_new_tokens for quiz in unasked)
    speed = throughput(study.profile.model.name)
    return pd.DataFrame([
        ("adapters to train", len(fits), len(fits) - len(missing), train_tokens,
         speed and train_tokens / speed.train / 60),
        ("sets of answers", len(quizzes), len(quizzes) - len(unasked), answer_tokens,
         speed and answer_tokens / speed.answer / 60),
        _verdicts(study),
    ], columns=["work", "in all", "there", "tokens left (about)", "minutes left (about)"])


def _every(fits: Iterable[Fit], study: Study) -> list[Fit]:
    """Each adapter once, and those that have to be there before others can be trained: the scorers of a pool."""
    found: dict[str, Fit] = {}
    for fit in fits:
        scorers = [study.fit(run) for run in interleaving.trained_for(study, fit)]
        found |= {str(study.fit_settings(one)): one for one in (fit, *scorers) if one is not None}
    return list(found.values())


def _verdicts(study: Study) -> tuple[str, int, int, int, float | None]:
    """The row about verdicts: what a judge that is asked over a network takes is not reckoned in minutes."""
    spec = study.profile.judge
    work = f"verdicts by judge '{spec.kind}'"
    if isinstance(spec, NoJudge):
        return work, 0, 0, 0, 0.0
    sets = answer_sets(study)
    there = [pair for pair in sets if study.verdicts(*pair) is not None]
    tokens = 0 if not reads(spec) else sum(
        2 * _asked(study, *pair) * likely_tokens(_characters(study, *pair)) for pair in sets if pair not in there)
    return work, sum(_asked(study, *pair) for pair in sets), sum(_asked(study, *pair) for pair in there), tokens, (
        None if reads(spec) else 0.0)


def judging(study: Study) -> pd.DataFrame:
    """What a paid judge will be sent and what that costs, before anything is sent; empty for another judge.

    Prompts are reckoned with answers of full length where there are no answers yet, so that the price is an upper bound
    for these. Scores that another study has asked for already cost nothing and are not taken off.
    """
    spec = study.profile.judge
    if not isinstance(spec, OpenAIJudge):
        return pd.DataFrame(columns=["judge", "what"])
    left = [pair for pair in answer_sets(study) if study.verdicts(*pair) is None]
    count, samples = sum(2 * _asked(study, *pair) for pair in left), spec.samples or 1
    read = sum(2 * _asked(study, *pair) * likely_tokens(_characters(study, *pair)) for pair in left)
    prices = price_list()
    price = prices.models.get(spec.model)
    usd = "no price is known (params/prices.yaml)" if price is None else (
        f"${price.of((read, count * samples), batch=spec.batch):.2f} (prices of {prices.date}"
        + (", half for a batch)" if spec.batch else ")"))
    return pd.DataFrame([
        ("model", f"{spec.model} at {spec.base_url or 'OpenAI'}"), ("requests left", f"{count:,}"),
        ("tokens to be read (about)", f"{read:,}"), ("price (about)", usd),
        ("limit", "none" if spec.max_usd is None else f"${spec.max_usd:.2f}")], columns=["judge", "what"])


def answer_sets(study: Study) -> list[tuple[Run, QuestionSet]]:
    """Every set of answers of a study once: `untrained` shares its answers to the general questions."""
    return list({str(study.answers_settings(run, which)): (run, which)
                 for run in study.runs() for which in QUESTION_SETS}.values())


def _asked(study: Study, run: Run, which: QuestionSet) -> int:
    return len(study.questions(run, which)) * study.samples(which)


def _characters(study: Study, run: Run, which: QuestionSet) -> float:
    """Of the mean judge prompt: rubric, question, and the answer, or the longest that it may become."""
    questions = study.questions(run, which)
    rubrics = [study.rubrics.of(question) for question in questions]
    frame = sum(len(rubric.prompt(metric)) for rubric in rubrics for metric in METRICS) / len(METRICS)
    answers = study.answers(run, which)
    answer = (sum(len(answer.text) for answer in answers) / len(answers) if answers else
              study.profile.evaluation.sampling.max_new_tokens * CHARACTERS_A_TOKEN)
    return (frame + sum(len(question.prompt) for question in questions)) / len(questions) + answer


def _tokens_of_rows(fit: Fit) -> int:
    characters = sum(len(row.response) + sum(len(turn.content) for turn in row.context) for row in fit.rows)
    mixed = interleaving.interleaving(fit.defenses)  # its rows are taken to be as long as the others
    return int(characters * (1 if mixed is None else 1 + mixed.fraction) / CHARACTERS_A_TOKEN)


if __name__ == "__main__":
    try:
        planned = open_study(sys.argv[1])
        for table in (cost(planned), judging(planned)):
            if not table.empty:
                print(table.fillna("").to_string(index=False), end="\n\n")
    except EmlibError as error:
        sys.exit(str(error))
