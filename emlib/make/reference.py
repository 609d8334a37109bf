"""Storing the reference model's hidden states, or their projections, on an adapter's training rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from emlib.make.rows import training_rows
from emlib.make.session import Session, maker
from emlib.models import adapters
from emlib.models.reference import keep, keep_projections
from emlib.steering import extraction
from emlib.steps.adapter import Reference, ReferenceProjections, ReferenceStates
from emlib.store.artefacts import Facts


@maker.register
def make(step: ReferenceStates, session: Session, folder: Path) -> Facts:
    """Store the states of one forward pass over all rows, with a new adapter that is disabled, as in training."""
    return _stored(step, session, partial(keep, tokens=step.tokens, folder=folder))


@maker.register
def projections(step: ReferenceProjections, session: Session, folder: Path) -> Facts:
    """Store the projections onto the trait's unit vectors, of a pass that ends at the deepest layer."""
    vectors = extraction.load(session.folder_of(dict(step.artefacts)["vector"]))
    directions = {layer: extraction.unit(vectors.at(layer), layer) for layer in step.layers}
    return _stored(step, session, partial(keep_projections, directions=directions, folder=folder))


def _stored(step: Reference, session: Session, write: Callable[..., int]) -> Facts:
    """Store what `write` does of the rows that are trained on; on rows that one defense penalises no other acts."""
    seconds = session.timer(step)
    artefacts = {name: session.folder_of(needed) for name, needed in step.artefacts}
    rows = training_rows(session, replace(step.spec, defenses=step.adding), artefacts)
    trained = [row for row in (*rows.own, *rows.added, *rows.offered.rows) if not row.penalised_by]
    with adapters.new_lora(session.chat.model, session.profile.lora, step.spec.seed) as model:
        size = write(model, trained, batch_size=step.spec.training.batch_size)
    return {"rows": len(trained), "bytes": size, "seconds": seconds()}
