"""Training an adapter: here, or in a process of its own for another library or for several GPUs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from emlib.core.files import read_records, write_records
from emlib.core.progress import say
from emlib.data.chat import Encoded
from emlib.make import backends
from emlib.make.backends import PLAIN, Choice
from emlib.make.rows import ADDED, encoded_rows
from emlib.models import adapters
from emlib.models.logprobs import token_logprobs
from emlib.scoring.records import Added
from emlib.steps.adapter import Adapter
from emlib.store.artefacts import SCRATCH, Facts
from emlib.training.in_subprocess import NeverBegan, train_apart
from emlib.training.job import Job
from emlib.training.objective import Objective
from emlib.training.records import LOG
from emlib.training.sft import fine_tune

if TYPE_CHECKING:
    from emlib.make.session import Session


def make(step: Adapter, session: Session, folder: Path) -> Facts:
    """Fine-tune on the rows under the defenses; keep the log, and the rows that were interleaved."""
    spec, profile = step.spec, session.profile
    artefacts = {name: session.folder_of(needed) for name, needed in step.artefacts}
    chosen = [row for some in step.added for row in read_records(session.need(some).file(ADDED), Added)]
    rows, added = encoded_rows(session, spec, chosen)
    choice = backends.training(profile.backend.training, profile.model, processes=profile.job.gpus)
    commit, facts = session.chat.commit, session.facts
    metrics = None
    if choice.name != PLAIN or choice.processes > 1:
        choice, metrics = _in_subprocess(step, session, choice, rows, added, artefacts, folder)
    if metrics is None:
        metrics = _here(step, session, rows, added, artefacts, folder)
    shutil.copyfile(folder / SCRATCH / LOG, folder / LOG)
    if chosen:
        write_records(folder / ADDED, chosen)
    say(f"{step.name}: {metrics['steps']} steps, {metrics['tokens']} tokens, {metrics['seconds']:.0f} s, "
        f"loss {metrics['final_loss']:.3f}, {metrics['truncated_rows']} rows cut")
    return {"rows": len(rows), "added_rows": len(added), **facts, "commit": commit, **metrics, **choice.facts}


def _here(step: Adapter, session: Session, rows: Sequence[Encoded], added: Sequence[Encoded],
          artefacts: dict[str, Path], folder: Path) -> dict[str, Any]:
    spec = step.spec
    with adapters.new_lora(session.chat.model, step.lora, spec.seed) as model:
        summary = fine_tune(model, rows, spec.training, seed=spec.seed, folder=folder / SCRATCH,
                            objective=Objective(spec.defenses, artefacts), added=added)
        adapters.save(model, folder, session.chat.name)
    return vars(summary)


def _in_subprocess(step: Adapter, session: Session, choice: Choice, rows: Sequence[Encoded],
                   added: Sequence[Encoded], artefacts: dict[str, Path],
                   folder: Path) -> tuple[Choice, dict[str, Any] | None]:
    """Training by another library, or in several processes. This one lets its model go meanwhile.

    Where another library never began, `auto` goes on with transformers, and the choice says why.
    """
    profile, spec, place = session.profile, step.spec, folder / SCRATCH / choice.name
    probe = token_logprobs(session.chat.model, torch.from_numpy(rows[0].input_ids).to(session.chat.device))
    job = Job(engine=choice.name, model=profile.model,  # type: ignore[arg-type]  # no other name gets here
              base_name=session.chat.name, lora=step.lora, training=spec.training, defenses=spec.defenses,
              seed=spec.seed, added=len(added), artefacts={name: str(path) for name, path in artefacts.items()},
              probe=tuple(probe))
    session.release_model()
    try:
        metrics = train_apart(job, [*rows, *added], place, choice.processes)
    except NeverBegan as error:
        if choice.name == PLAIN or profile.backend.training != "auto":
            raise
        say(f"{choice.name} is not used: {error}")
        return Choice(PLAIN, f"no {choice.name}: {error}"), None
    for file in (place / "adapter").iterdir():
        os.replace(file, folder / file.name)
    os.replace(place / LOG, folder / SCRATCH / LOG)
    return choice, metrics
