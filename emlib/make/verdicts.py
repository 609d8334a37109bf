"""Judging answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emlib.core.files import read_records, write_records
from emlib.core.records import Answer, Verdict
from emlib.judging.judge_batch import JudgeBatch
from emlib.judging.judges import judge
from emlib.steps.answers import SecondVerdicts, Verdicts
from emlib.store.artefacts import Facts

if TYPE_CHECKING:
    from emlib.make.session import Session


def make(step: Verdicts, session: Session, folder: Path) -> Facts:
    """Judge the answers; a second judge reads only those chosen for it."""
    answers = read_records(session.need(step.answers).file("answers.jsonl"), Answer)
    verdicts = judge_part(step, session, step.chosen(answers) if isinstance(step, SecondVerdicts) else answers)
    write_records(folder / "verdicts.jsonl", verdicts)
    return {"asked": len(verdicts), "scored": sum(verdict.scored for verdict in verdicts)}


def judge_part(step: Verdicts, session: Session, answers: Sequence[Answer]) -> list[Verdict]:
    """Judge some of the answers. Their scores are cached, so that judging all answers later reuses them."""
    batch = JudgeBatch(step.answers.evaluation.questions.all, answers, step.assessment.rubrics.value)
    return judge(step.assessment.judge, step.assessment.trait.value, batch, session.budget)
