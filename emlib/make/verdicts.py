"""Judging answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emlib.config import NoJudge
from emlib.core.records import Answer, MetricScore, Verdict
from emlib.judging.judge_batch import JudgeBatch
from emlib.judging.judges import NO_JUDGE, ONLY_THINKS, judge, scores
from emlib.judging.rubrics import JudgeRequest, Score
from emlib.make.session import Session, maker
from emlib.steps.answers import MetricScores, SecondVerdicts, Verdicts
from emlib.store.artefacts import Facts


@maker.register
def make(step: Verdicts, session: Session, folder: Path) -> Facts:
    """Judge the answers; a second judge reads only those chosen for it."""
    answers = session.read(step.answers)
    verdicts = judge_part(step, session, step.chosen(answers) if isinstance(step, SecondVerdicts) else answers)
    step.records.write(folder, verdicts)
    return {"asked": len(verdicts), "scored": sum(verdict.scored for verdict in verdicts)}


@maker.register
def metric(step: MetricScores, session: Session, folder: Path) -> Facts:
    """Have the answers scored on one metric."""
    answers = session.read(step.answers)
    found = _metric_scores(step, session, answers)
    step.records.write(folder, [
        MetricScore(answer.question, answer.sample, score.value, score.reason, score.note)
        for answer, score in zip(answers, found, strict=True)])
    return {"asked": len(answers)}


def _metric_scores(step: MetricScores, session: Session, answers: Sequence[Answer]) -> Sequence[Score]:
    if isinstance(step.judge, NoJudge):
        return [Score(None, reason=NO_JUDGE)] * len(answers)
    questions = {question.id: question for question in step.answers.evaluation.questions.all}
    given = [(answer, final) for answer in answers if (final := answer.final) is not None]
    found = iter(scores(step.judge, [
        JudgeRequest(step.metric, step.prompts.value[answer.question], questions[answer.question], final,
                     takes_words=True, wants_label=step.has_labels) for answer, final in given], session.budget))
    return [Score(None, reason=ONLY_THINKS) if answer.final is None else next(found) for answer in answers]


def judge_part(step: Verdicts, session: Session, answers: Sequence[Answer]) -> list[Verdict]:
    """Judge some of the answers. Their scores are cached, so that judging all answers later reuses them."""
    batch = JudgeBatch(step.answers.evaluation.questions.all, answers, step.assessment.rubrics.value)
    return judge(step.assessment.judge, step.assessment.trait.value, batch, session.budget)
