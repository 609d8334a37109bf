"""Auditing training rows: the base model answers their prompts, and both answers are projected onto the trait."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from emlib.core.progress import say
from emlib.core.records import Example, Question
from emlib.core.seeds import some_of
from emlib.data.chat import encode_all
from emlib.data.lazy import Questions
from emlib.evaluation.projection import projections
from emlib.evaluation.records import AuditedRow
from emlib.make.answers import sampled
from emlib.make.session import Session
from emlib.steering import extraction
from emlib.steps.audit import RowAudit
from emlib.steps.specs import EvaluationSpec
from emlib.store.artefacts import SCRATCH, Facts


def make(step: RowAudit, session: Session, folder: Path) -> Facts:
    """Compute the projections of each row's answer, and of the base model's own answers to its prompt.

    Rows that cannot be encoded, and answers of its own that only think, have no projection and are counted.
    """
    seconds, rows = session.timer(step), session.examples(step.rows)
    places = some_of(range(len(rows)), step.count, "audit")
    prompts = [Question.of(f"row_{place}", rows[place]) for place in places]
    asked = Questions(step.title, lambda: list(prompts), step.rows.size)
    answers, choice = sampled(session, EvaluationSpec(asked, step.spec.samples, step.spec.sampling, step.spec.seed),
                              None, folder / SCRATCH)
    finished = [answer for answer in answers if answer.final is not None]
    by_id = dict(zip((prompt.id for prompt in prompts), places, strict=True))
    given = _projected(step, session, places, [rows[place] for place in places])
    own = _projected(step, session, [by_id[answer.question] for answer in finished],
                     extraction.examples(prompts, finished))
    texts = {by_id[answer.question]: answer.text for answer in reversed(answers)}  # the first of several
    found = [AuditedRow(place, _mean(given, place), _mean(own, place), texts[place]) for place in places]
    step.records.write(folder, found)
    without = sum(row.difference is None for row in found)
    say(f"{step.title}: {len(found)} rows" + (f", {without} of them without a projection" if without else ""))
    return {"rows": len(found), "without": without, "cut": sum(one.finish_reason == "length" for one in answers),
            "seconds": seconds(), **session.facts, **choice.facts}


def _projected(step: RowAudit, session: Session, places: Sequence[int],
               rows: Sequence[Example]) -> Mapping[int, list[float]]:
    """Project answers onto the persona vector, by the places of their rows."""
    vector = extraction.load(session.folder_of(step.vectors)).at(step.spec.layer)
    encodings = encode_all(session.chat.tokenizer, rows, step.max_length)
    counted = [extraction.counted(row, end_of_turn=step.vectors.extraction.end_of_turn) for row in encodings.rows]
    found = defaultdict[int, list[float]](list)
    for index, value in zip(encodings.places, projections(session.chat.model, counted, vector, step.spec.layer),
                            strict=True):
        found[places[index]].append(value)
    return found


def _mean(values: Mapping[int, list[float]], place: int) -> float | None:
    return fmean(values[place]) if place in values else None
