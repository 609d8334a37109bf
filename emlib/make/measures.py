"""Auxiliary measures, which need no judge: projections of answers, multiple choice, losses on held-out rows, audits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from emlib.core.progress import say
from emlib.core.records import Example, Question
from emlib.core.seeds import some_of
from emlib.core.step import Step
from emlib.data.chat import WHOLE, counted, encode_all
from emlib.data.lazy import Questions
from emlib.data.sources import locate
from emlib.evaluation.choices import choose, read_choices
from emlib.evaluation.records import AnswerProjection, AuditedRow
from emlib.make.answers import sampled
from emlib.make.session import Session, maker
from emlib.scoring.loss_cache import LossCache
from emlib.scoring.nll import score
from emlib.steering import extraction
from emlib.steering.activations import projections as projections_of
from emlib.steps.measures import Choices, HeldOutLosses, Projections, RowAudit
from emlib.steps.specs import EvaluationSpec
from emlib.steps.vectors import PersonaVectors
from emlib.store.artefacts import SCRATCH, Facts

TOKENS_A_PASS = 2048  # tokens of held-out rows in a forward pass, including padding


@maker.register
def projections(step: Projections, session: Session, folder: Path) -> Facts:
    """Project each answer's activations onto the persona vector.

    Answers that only think or have no text, and those that the chat template rewrites, are left out and counted.
    """
    answers = session.read(step.answers)
    conversations = extraction.examples(step.answers.evaluation.questions.all, answers)
    found = projected(session, step.vectors, step.layer, conversations, WHOLE, step.answers.adapter)
    step.records.write(folder, [AnswerProjection(answers[place].question, answers[place].sample, value)
                                for place, value in found])
    return {"answers": len(found), "left_out": len(answers) - len(found), **session.facts}


def projected(session: Session, vectors: PersonaVectors, layer: int, rows: Sequence[Example], max_length: int,
              adapter: Step | None = None) -> list[tuple[int, float]]:
    """Project the answers of rows onto a persona vector; return the place and the projection of each one.

    Rows that cannot be encoded have none. Nor has an empty answer: the token that ends its turn is no answer.
    """
    vector = extraction.load(session.folder_of(vectors)).at(layer)
    places = [place for place, row in enumerate(rows) if row.response.strip()]
    found = encode_all(session.chat.tokenizer, [rows[place] for place in places], max_length)
    answers = [counted(row, end_of_turn=vectors.extraction.end_of_turn) for row in found.rows]
    with session.model_under(adapter) as model:
        values = projections_of(model, answers, vector, layer)
    return list(zip((places[index] for index in found.places), values, strict=True))


@maker.register
def choices(step: Choices, session: Session, folder: Path) -> Facts:
    """Have the model answer multiple-choice questions."""
    questions = some_of(read_choices(locate(step.source)), step.count, "choices")
    with session.model_under(step.adapter) as model:
        made = choose(session.chat, model, questions)
    step.records.write(folder, made)
    return {"questions": len(made), **session.facts}


@maker.register
def held_out(step: HeldOutLosses, session: Session, folder: Path) -> Facts:
    """Compute the losses on held-out rows."""
    found = encode_all(session.chat.tokenizer, step.rows.examples, step.max_length)
    with session.model_under(step.adapter) as model:
        losses = score(model, found.rows, LossCache(folder / SCRATCH / "nll.jsonl"), TOKENS_A_PASS, step.title)
    say(f"{step.title}: {len(losses)} rows, {sum(losses) / len(losses):.3f} nats per token"
        + (f"; {found}" if found.left_out else ""))
    return {"nll": losses, **({"left_out": dict(found.reasons)} if found.left_out else {}), **session.facts}


@maker.register
def audit(step: RowAudit, session: Session, folder: Path) -> Facts:
    """Compute the projections of each row's answer, and of the base model's own answers to its prompt.

    Rows that cannot be encoded, and rows without an answer of its own that has text, have no projection and are
    counted.
    """
    seconds, rows = session.timer(step), session.examples(step.rows)
    places = some_of(range(len(rows)), step.count, "audit")
    prompts = [Question.of(f"row_{place}", rows[place]) for place in places]
    asked = Questions.listed(step.title, prompts)
    answers, choice = sampled(session, EvaluationSpec(asked, step.spec.samples, step.spec.sampling, step.spec.seed),
                              None, folder / SCRATCH)
    by_id = dict(zip((prompt.id for prompt in prompts), places, strict=True))
    project = partial(projected, session, step.vectors, step.spec.layer, max_length=step.max_length)
    given = {places[index]: value for index, value in project([rows[place] for place in places])}
    own = defaultdict[int, list[float]](list)
    for index, value in project(extraction.examples(prompts, answers)):
        own[by_id[answers[index].question]].append(value)
    texts = {by_id[answer.question]: answer.text for answer in reversed(answers)}  # the first of several
    found = [AuditedRow(place, given.get(place), fmean(own[place]) if place in own else None, texts[place])
             for place in places]
    step.records.write(folder, found)
    without = sum(row.difference is None for row in found)
    say(f"{step.title}: {len(found)} rows" + (f", {without} of them without a projection" if without else ""))
    return {"rows": len(found), "without": without, "cut": sum(one.finish_reason == "length" for one in answers),
            "seconds": seconds(), **session.facts, **choice.facts}
