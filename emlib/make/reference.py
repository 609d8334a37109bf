"""Storing the reference model's hidden states on an adapter's training rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from emlib.make.rows import training_rows
from emlib.models import adapters
from emlib.models.reference import keep
from emlib.steps.adapter import ReferenceStates
from emlib.store.artefacts import Facts

if TYPE_CHECKING:
    from emlib.make.session import Session


def make(step: ReferenceStates, session: Session, folder: Path) -> Facts:
    """Store the states of one forward pass over all rows, with a new adapter that is disabled, as in training."""
    started = time.perf_counter()
    artefacts = {name: session.folder_of(rows) for name, rows in step.artefacts}
    rows, _ = training_rows(session, step.spec, artefacts)
    trained = [*rows.own, *rows.added, *rows.offered.rows]
    with adapters.new_lora(session.chat.model, session.profile.lora, step.spec.seed) as model:
        size = keep(model, trained, step.tokens, step.spec.training.batch_size, folder)
    return {"rows": len(trained), "bytes": size, "seconds": round(time.perf_counter() - started, 3)}
