"""What single defenses need before training is made: the trait's adapter, components of a change, reference states."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from emlib.core.errors import DataError
from emlib.core.files import read_records
from emlib.core.progress import say
from emlib.core.records import Answer, Example, Message, Verdict
from emlib.core.seeds import derive
from emlib.data.chat import encode_all
from emlib.make.rows import training_rows
from emlib.make.session import Session, maker
from emlib.models import adapters
from emlib.models.reference import keep, keep_projections
from emlib.models.second_adapter import write_random
from emlib.steering import components, extraction
from emlib.steering.extraction import SIDES, kept_pairs, trait_questions
from emlib.steps.needs import ChangeComponents, Reference, ReferenceProjections, ReferenceStates, TraitAdapter
from emlib.steps.vectors import PersonaVectors
from emlib.store.artefacts import SCRATCH, Facts
from emlib.training.records import LOG
from emlib.training.sft import fine_tune


@maker.register
def trait_adapter(step: TraitAdapter, session: Session, folder: Path) -> Facts:
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


@maker.register
def decompose(step: ChangeComponents, session: Session, folder: Path) -> Facts:
    """Compare the model with and without the adapter on the rows, and write the components of each layer."""
    seconds, rows = session.timer(step), session.examples(step.rows)
    with session.model_under(step.adapter) as model:
        encoded = encode_all(session.chat.tokenizer, rows, step.max_length).rows
        found = components.decompose(model, encoded, step.layers, session.profile.training.batch_size)
    components.save(found, folder)
    shares = {str(layer): [round(float(share), 4) for share in shares[:3]] for layer, shares in found.shares.items()}
    say("components of change: the first explains " + ", ".join(
        f"{shares[layer][0]:.0%} at layer {layer}" for layer in shares))
    return {"rows": len(rows), "explained": shares, **session.facts, "seconds": seconds()}


@maker.register
def states(step: ReferenceStates, session: Session, folder: Path) -> Facts:
    """Store the states of one forward pass over all rows, with a new adapter that is disabled, as in training."""
    return _stored(step, session, partial(keep, tokens=step.tokens, folder=folder))


@maker.register
def projections(step: ReferenceProjections, session: Session, folder: Path) -> Facts:
    """Store the projections onto the trait's unit vectors, of a pass that ends at the deepest layer."""
    vectors = extraction.load(session.folder_of(dict(step.artefacts)["vector"]))
    directions = {layer: extraction.unit(vectors.at(layer), layer) for layer in step.layers}
    return _stored(step, session, partial(keep_projections, directions=directions, folder=folder))


def _stored(step: Reference, session: Session, write: Callable[..., int]) -> Facts:
    """Store what `write` makes from the training rows, without those that a defense penalises."""
    seconds = session.timer(step)
    artefacts = {name: session.folder_of(needed) for name, needed in step.artefacts}
    rows = training_rows(session, replace(step.spec, defenses=step.adding), artefacts)
    trained = [row for row in (*rows.own, *rows.added, *rows.offered.rows) if not row.penalised_by]
    with adapters.new_lora(session.chat.model, session.profile.lora, step.spec.seed) as model:
        size = write(model, trained, batch_size=step.spec.training.batch_size)
    return {"rows": len(trained), "bytes": size, "seconds": seconds()}
