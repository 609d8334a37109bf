"""Judging answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emlib.core.files import read_records, write_records
from emlib.core.records import Answer
from emlib.judging.judge_batch import JudgeBatch
from emlib.judging.judges import judge
from emlib.steps.answers import SecondVerdicts, Verdicts
from emlib.store.artefacts import Facts

if TYPE_CHECKING:
    from emlib.make.session import Session


def make(step: Verdicts, session: Session, folder: Path) -> Facts:
    """A verdict on each answer."""
    answers = read_records(session.need(step.answers).file("answers.jsonl"), Answer)
    return _judged(step, session, folder, answers)


def second(step: SecondVerdicts, session: Session, folder: Path) -> Facts:
    """The second judge's verdicts on those answers that it is given."""
    answers = read_records(session.need(step.answers).file("answers.jsonl"), Answer)
    return _judged(step, session, folder, step.chosen(answers))


def read_part(step: Verdicts, session: Session, answers: Sequence[Answer]) -> None:
    """Have a part of the answers judged; its scores are kept, and found when all are judged."""
    judge(step.assessment.judge, step.assessment.trait.value, _sheet(step, answers), session.budget)


def _judged(step: Verdicts, session: Session, folder: Path, answers: Sequence[Answer]) -> Facts:
    verdicts = judge(step.assessment.judge, step.assessment.trait.value, _sheet(step, answers), session.budget)
    write_records(folder / "verdicts.jsonl", verdicts)
    return {"asked": len(verdicts), "scored": sum(verdict.scored for verdict in verdicts)}


def _sheet(step: Verdicts, answers: Sequence[Answer]) -> JudgeBatch:
    return JudgeBatch(step.answers.evaluation.questions.all, answers, step.assessment.rubrics.value)
