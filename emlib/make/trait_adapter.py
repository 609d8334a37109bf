"""Training the adapter of the trait, or drawing the random one that is its control."""

from __future__ import annotations

import shutil
from pathlib import Path

from emlib.core.errors import DataError
from emlib.core.files import read_records
from emlib.core.progress import say
from emlib.core.records import Answer, Example, Message, Verdict
from emlib.core.seeds import derive
from emlib.data.chat import encode_all
from emlib.make.session import Session, maker
from emlib.models import adapters
from emlib.models.second_adapter import write_random
from emlib.steering.extraction import SIDES, kept_pairs, trait_questions
from emlib.steps.trait_adapter import TraitAdapter
from emlib.steps.vectors import PersonaVectors
from emlib.store.artefacts import SCRATCH, Facts
from emlib.training.records import LOG
from emlib.training.sft import fine_tune


@maker.register
def make(step: TraitAdapter, session: Session, folder: Path) -> Facts:
    """Fine-tune an adapter on rows that show the trait, or write random matrices with the norms of that one."""
    if step.random:
        write_random(session.folder_of(step.trained), folder, derive(step.seed, "random adapter"))
        return {"seed": step.seed}
    rows = _shown(step.shown_by, session) if isinstance(step.shown_by, PersonaVectors) else step.shown_by.examples
    found = encode_all(session.chat.tokenizer, rows, step.training.max_seq_length)
    # A seed of its own: with that of a run, both adapters would begin with the same A.
    with adapters.new_lora(session.chat.model, step.lora, derive(step.seed, "trait adapter")) as model:
        summary = fine_tune(model, found.rows, step.training, seed=step.seed, folder=folder / SCRATCH)
        adapters.save(model, folder, session.chat.name)
    shutil.copyfile(folder / SCRATCH / LOG, folder / LOG)
    say(f"{step.title}: {len(found.rows)} rows, {summary.steps} steps, loss {summary.final_loss:.3f}"
        + (f"; {found}" if found.left_out else ""))
    left_out = {"left_out": dict(found.reasons)} if found.left_out else {}
    return {"rows": len(found.rows), **left_out, **session.facts, "commit": session.chat.commit, **vars(summary)}


def _shown(step: PersonaVectors, session: Session) -> list[Example]:
    """Return the questions of the extraction, without system prompts, with the answers that show the trait.

    Neither has what the model thinks before it answers; an answer that is all thought is left out.
    """
    place, trait = session.folder_of(step), step.assessment.trait.value
    questions = trait_questions(trait, step.extraction.instruction_pairs)["positive"]
    prompts = {question.id: question.prompt for question in questions}
    answers = [answer.without_thinking() for answer in read_records(place / "answers_positive.jsonl", Answer)]
    positive, negative = (read_records(place / f"verdicts_{side}.jsonl", Verdict) for side in SIDES)
    kept = [answers[index] for index in kept_pairs(positive, negative, step.extraction.keep)
            if answers[index].text.strip()]
    if not kept:
        raise DataError(f"none of {len(answers)} answers of the persona vectors' extraction shows the trait "
                        f"'{trait.name}'. Name rows that do: inoculation_adapter takes them from `source`.")
    return [Example((Message("user", prompts[answer.question]),), answer.text, answer.question) for answer in kept]
