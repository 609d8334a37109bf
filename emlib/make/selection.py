"""Ordering the pool's rows, and sampling the model's own answers to their prompts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from emlib.core.files import write_records
from emlib.core.progress import say
from emlib.core.records import Answer, Example
from emlib.data.lazy import Questions
from emlib.make.answers import sampled
from emlib.make.rows import VERDICTS, in_tokens, pool_question, ranked_rows
from emlib.make.session import Session, maker
from emlib.make.vectors import answers_now, by_trait
from emlib.scoring.order import at_random, by_score
from emlib.scoring.refusals import NOTHING, Filtered, by_judge, by_keywords
from emlib.steering.steer import steer
from emlib.steps.added import Against, OwnAnswers
from emlib.steps.pool import Selection
from emlib.steps.specs import EvaluationSpec
from emlib.store.artefacts import SCRATCH, Facts


@maker.register
def make(step: Selection, session: Session, folder: Path) -> Facts:
    """Order the rows at random or by their losses. Rows that are never interleaved come last, each with its reason."""
    rows, pool = session.read(step.pool), step.pool.spec
    losses = None if step.losses is None else session.read(step.losses)
    filtered = _refused(step, session, rows)
    unfit = {place: f"does not fit: {reason}" for place, row in enumerate(rows) if isinstance(
        reason := in_tokens(session, row), str)}
    order = at_random(rows, unfit, step.seed or 0) if losses is None else by_score(
        rows, losses, unfit, pool.epsilon, filtered)
    step.records.write(folder, order)
    reasons = Counter(ranked.reason.partition(":")[0] for ranked in order if ranked.rank is None)
    unscored = [ranked.where for ranked in order if ranked.reason.startswith("no score")]
    ranks = sum(ranked.rank is not None for ranked in order)
    say(f"{step.dataset or 'pool'}, {step.choose}: {ranks} rows in order" + "".join(
        f", {count} never interleaved ({reason})" for reason, count in reasons.items()) + (
        f"; without a score: {', '.join(unscored[:5])}" if unscored else ""))
    return {"ranked": len(order) - sum(reasons.values()), "never_taken": dict(reasons)}


@maker.register
def own_answers(step: OwnAnswers, session: Session, folder: Path) -> Facts:
    """Sample the model's answers to one batch of the order's prompts."""
    assert step.start is not None, "each batch is a separate artefact"
    seconds = session.timer(step)
    batch = ranked_rows(session, step.selection)[step.start:step.start + step.sampling.batch_rows]
    rows = session.read(step.selection.pool)
    questions = [pool_question(ranked.place, rows[ranked.place]) for ranked in batch]
    asked = EvaluationSpec(Questions("pool", lambda: questions, step.selection.pool.size), 1, step.sampling, step.seed)
    if step.against is None:
        answers, choice = sampled(session, asked, step.adapter, folder / SCRATCH)
        checks: dict[str, Any] = {}
    else:
        choice, (answers, checks) = session.inference.steering_backend(), _against(step.against, session, asked, folder)
    step.records.write(folder, answers)
    return {"answers": len(answers), "cut": sum(answer.finish_reason == "length" for answer in answers), **checks,
            "seconds": seconds(), **choice.facts}


def _against(against: Against, session: Session, asked: EvaluationSpec,
             folder: Path) -> tuple[list[Answer], dict[str, Any]]:
    """Sample answers of the model steered against the trait; write the verdicts on them, and return their counts."""
    vector = session.vector(against.vectors, against.layer)
    with steer(session.chat.model, against.layer, vector, -against.strength) as norm:
        answers = answers_now(session, asked)
    facts: dict[str, Any] = {"shift": norm.measured}
    if against.assessment is None:
        return answers, facts
    verdicts = by_trait(session, against.assessment, asked.questions.all, answers)
    write_records(folder / VERDICTS, verdicts)
    return answers, facts | {"verdicts": dict(Counter(verdict.label for verdict in verdicts))}


def _refused(step: Selection, session: Session, rows: list[Example]) -> Filtered:
    """Apply the refusal filter to the rows, by a judge's scores or by keywords, if the step has one."""
    pool = step.pool.spec
    if step.refusals is not None:
        return by_judge(session.read(step.refusals), step.refusals.how.threshold)
    return by_keywords(rows, pool.refusal_keywords, pool.refusal_words) if step.filtered else NOTHING
