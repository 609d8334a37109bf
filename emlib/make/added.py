"""Rows of the pool that a training adds: choosing them, and sampling the model's own answers to their prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from emlib.core.files import read_records, write_records
from emlib.core.progress import say
from emlib.core.records import AddedRow, Answer, Example, Question, Verdict
from emlib.data.chat import Encoded
from emlib.data.lazy import Questions
from emlib.data.mixing import enough
from emlib.make.answers import sampled
from emlib.make.rows import in_tokens
from emlib.make.session import Session, maker
from emlib.make.vectors import answers_now, by_trait
from emlib.scoring.order import Ranked
from emlib.steering.steer import steer
from emlib.steps.added import AddedRows, Against, CandidateRows, OwnAnswers
from emlib.steps.pool import Selection
from emlib.steps.specs import EvaluationSpec
from emlib.store.artefacts import SCRATCH, Facts

VERDICTS = "verdicts.jsonl"  # on the model's own answers


@maker.register
def candidate_rows(step: CandidateRows, session: Session, folder: Path) -> Facts:
    """Write the rows from which training chooses: the first ones of the order, up to a number of tokens."""
    trained = [in_tokens(session, row) for row in step.among.examples]
    budget = step.share * step.epochs * sum(len(row.input_ids) for row in trained if isinstance(row, Encoded))
    rows, found, tokens = session.read(step.selection.pool), list[AddedRow](), 0
    for ranked in ranked_rows(session, step.selection):
        row = in_tokens(session, rows[ranked.place])
        if isinstance(row, Encoded):
            tokens += len(row.input_ids)
        if tokens > budget and len(found) >= step.least:
            break
        found.append(_added(ranked, rows[ranked.place]))
    enough(found, step.least, step.title)
    step.records.write(folder, found)
    say(f"{step.title}: {len(found)} candidates")
    return {"rows": len(found)}


@maker.register
def make(step: AddedRows, session: Session, folder: Path) -> Facts:
    """Write the rows that are interleaved."""
    found = added_rows(session, step, step.count, str(step.title))
    step.records.write(folder, found)
    return {"rows": len(found)}


def added_rows(session: Session, step: AddedRows, count: int, name: str) -> list[AddedRow]:
    """Return the first `count` rows of the order.

    Raises:
        DataError: the pool has too few; the message says how many are missing.
    """
    rows = session.read(step.selection.pool)
    order = ranked_rows(session, step.selection)
    found = ([_added(ranked, rows[ranked.place]) for ranked in enough(order, count, name)] if step.own_answers is None
             else _with_own_answers(session, step.own_answers, order, rows, count, name))
    if step.system is None:
        return found
    examples = [row.example.with_system_prompt(step.system) for row in found]
    return [replace(row, context=[turn.to_dict() for turn in example.context])
            for row, example in zip(found, examples, strict=True)]


def ranked_rows(session: Session, selection: Selection) -> list[Ranked]:
    """Return the rows of an order, without those that are never interleaved."""
    return [row for row in session.read(selection) if row.rank is not None]


def _with_own_answers(session: Session, own: OwnAnswers, order: Sequence[Ranked], rows: Sequence[Example], count: int,
                      name: str) -> list[AddedRow]:
    """Return the first rows of the order that the model answers completely, sampled batch by batch."""
    size, found, skipped = own.sampling.batch_rows, list[AddedRow](), Counter[str]()
    for start in range(0, len(order), size):
        for one in _answered(session, replace(own, start=start), order[start:start + size], rows):
            if isinstance(one, str):
                skipped[one] += 1
            else:
                found.append(one)
        if len(found) >= count:
            break
    skips = ", ".join(f"{number} {why}" for why, number in skipped.items()) or "none"
    if len(found) >= count:
        say(f"{name}: {count} of the model's own answers are used; skipped: {skips}")
    return enough(found, count, f"{name}, answered by the model itself in at most {own.sampling.max_new_tokens} tokens "
                                f"(skipped: {skips})")


def _answered(session: Session, own: OwnAnswers, batch: Sequence[Ranked],
              rows: Sequence[Example]) -> Iterator[AddedRow | str]:
    """Yield each row of a batch with the model's own answer, or why it is skipped.

    An empty answer teaches nothing, and an answer truncated at the limit teaches the model not to stop. A batch is
    sampled in another order than that of its prompts, so that answers and verdicts are found by their question.
    """
    made = session.need(own)
    answers = {one.question: one for one in made.records(own)}
    verdicts = read_records(made.file(VERDICTS), Verdict) if made.has(VERDICTS) else []
    labels = {one.question: one.label for one in verdicts}
    for ranked in batch:
        question = Question.of(f"pool_{ranked.place}", rows[ranked.place])
        answer, label = answers[question.id], labels.get(question.id)
        text = answer.without_thinking().text.strip()
        if label in ("misaligned", "incoherent"):
            yield label
        elif answer.finish_reason != "stop" or not text:
            yield "empty or truncated"
        else:
            yield _added(ranked, Example(question.context, text, ranked.where))


@maker.register
def own_answers(step: OwnAnswers, session: Session, folder: Path) -> Facts:
    """Sample the model's answers to one batch of the order's prompts."""
    assert step.start is not None, "each batch is a separate artefact"
    seconds = session.timer(step)
    batch = ranked_rows(session, step.selection)[step.start:step.start + step.sampling.batch_rows]
    rows = session.read(step.selection.pool)
    questions = [Question.of(f"pool_{ranked.place}", rows[ranked.place]) for ranked in batch]
    asked = EvaluationSpec(Questions.listed("pool", questions), 1, step.sampling, step.seed)
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


def _added(ranked: Ranked, row: Example) -> AddedRow:
    return replace(AddedRow.of(row, ranked.rank or 0, ranked.place, ranked.score, ranked.reason), where=ranked.where)
