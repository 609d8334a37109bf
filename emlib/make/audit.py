"""Auditing training rows: the base model answers their prompts, and both answers are projected onto the trait."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import fmean

from emlib.core.progress import say
from emlib.core.records import Question
from emlib.core.seeds import some_of
from emlib.data.lazy import Questions
from emlib.evaluation.records import AuditedRow
from emlib.make.answers import sampled
from emlib.make.measures import projected
from emlib.make.session import Session, maker
from emlib.steering import extraction
from emlib.steps.audit import RowAudit
from emlib.steps.specs import EvaluationSpec
from emlib.store.artefacts import SCRATCH, Facts


@maker.register
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
    project = partial(projected, session, step.vectors, step.spec.layer, max_length=step.max_length)
    given = {places[index]: value for index, value in project([rows[place] for place in places])}
    own = defaultdict[int, list[float]](list)
    for index, value in project(extraction.examples(prompts, finished)):
        own[by_id[finished[index].question]].append(value)
    texts = {by_id[answer.question]: answer.text for answer in reversed(answers)}  # the first of several
    found = [AuditedRow(place, given.get(place), fmean(own[place]) if place in own else None, texts[place])
             for place in places]
    step.records.write(folder, found)
    without = sum(row.difference is None for row in found)
    say(f"{step.title}: {len(found)} rows" + (f", {without} of them without a projection" if without else ""))
    return {"rows": len(found), "without": without, "cut": sum(one.finish_reason == "length" for one in answers),
            "seconds": seconds(), **session.facts, **choice.facts}
