"""Keeping the reference model's states on the rows of an adapter."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from emlib.core.files import read_records
from emlib.make.rows import ADDED, encoded_rows
from emlib.models import adapters
from emlib.scoring.records import Added
from emlib.steps.adapter import ReferenceStates
from emlib.store.artefacts import Facts
from emlib.training.reference import keep

if TYPE_CHECKING:
    from emlib.make.session import Session


def make(step: ReferenceStates, session: Session, folder: Path) -> Facts:
    """One pass over all rows under a fresh adapter that is switched off, as in training."""
    started = time.perf_counter()
    rows, added = encoded_rows(session, step.spec, [
        row for some in step.added for row in read_records(session.need(some).file(ADDED), Added)])
    with adapters.new_lora(session.chat.model, session.profile.lora, step.spec.seed) as model:
        size = keep(model, [*rows, *added], step.tokens, step.spec.training.batch_size, folder)
    return {"rows": len(rows) + len(added), "bytes": size, "seconds": round(time.perf_counter() - started, 3)}
