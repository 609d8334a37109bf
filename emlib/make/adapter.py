"""Training an adapter: in this process, or in a subprocess for another library or for several GPUs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from emlib.core.files import write_records
from emlib.core.plugins import CannotBeImported
from emlib.core.progress import say
from emlib.core.records import ADDED
from emlib.data import row_record
from emlib.make import backends
from emlib.make.backends import PLAIN, Choice
from emlib.make.rows import TrainingRows, training_rows
from emlib.models import adapters
from emlib.models.logprobs import token_logprobs
from emlib.steps.adapter import Adapter
from emlib.store.artefacts import SCRATCH, Facts
from emlib.training.in_subprocess import BackendUnavailable, train_in_subprocess
from emlib.training.job import Job, plugin_files
from emlib.training.objective import Objective
from emlib.training.records import LOG
from emlib.training.sft import fine_tune

if TYPE_CHECKING:
    from emlib.make.session import Session


def make(step: Adapter, session: Session, folder: Path) -> Facts:
    """Fine-tune an adapter under its defenses; saves it with its log and the interleaved rows."""
    profile = session.profile
    artefacts = {name: session.folder_of(needed) for name, needed in step.artefacts}
    rows, chosen = training_rows(session, step.spec, artefacts)
    choice = backends.training(profile.backend.training, profile.model, processes=profile.job.gpus)
    commit, facts = session.chat.commit, session.facts  # read while the model is loaded
    metrics = None
    if choice.name != PLAIN or choice.processes > 1:
        choice, metrics = _in_subprocess(step, session, choice, rows, artefacts, folder)
    if metrics is None:
        metrics = _in_this_process(step, session, rows, artefacts, folder)
    shutil.copyfile(folder / SCRATCH / LOG, folder / LOG)
    row_record.write(folder, step.spec.rows.examples)
    if chosen:
        write_records(folder / ADDED, chosen)
    say(f"{step.name}: {metrics['steps']} steps, {metrics['tokens']} tokens, {metrics['seconds']:.0f} s, "
        f"loss {metrics['final_loss']:.3f}, {metrics['truncated_rows']} rows truncated")
    penalised = sum(bool(row.penalised_by) for row in rows.added)
    return {"rows": len(rows.own), "added_rows": len(rows.added) - penalised,
            **({"penalised_rows": penalised} if penalised else {}), **facts, "commit": commit, **metrics,
            **choice.facts}


def _in_this_process(step: Adapter, session: Session, rows: TrainingRows, artefacts: Mapping[str, Path],
                     folder: Path) -> dict[str, Any]:
    spec = step.spec
    with adapters.new_lora(session.chat.model, step.lora, spec.seed) as model:
        summary = fine_tune(model, rows.own, spec.training, seed=spec.seed, folder=folder / SCRATCH,
                            objective=Objective(spec.defenses, artefacts), added=rows.added, held_out=rows.held_out)
        adapters.save(model, folder, session.chat.name)
    return vars(summary)


def _in_subprocess(step: Adapter, session: Session, choice: Choice, rows: TrainingRows,
                   artefacts: Mapping[str, Path], folder: Path) -> tuple[Choice, dict[str, Any] | None]:
    """Train with another library, or in several processes, and release this process's model meanwhile.

    If the other library cannot start and the profile says `auto`, returns transformers with the reason, and no metrics.
    """
    profile, spec, place = session.profile, step.spec, folder / SCRATCH / choice.name
    probe = token_logprobs(session.chat.model, torch.from_numpy(rows.own[0].input_ids).to(session.chat.device))
    try:
        job = Job(engine=choice.name, model=profile.model,  # type: ignore[arg-type]  # one of Job's engines
                  base_name=session.chat.name, lora=step.lora, training=spec.training,
                  plugins=plugin_files(spec.defenses), defenses=spec.defenses,
                  artefacts={name: str(path.resolve()) for name, path in artefacts.items()}, seed=spec.seed,
                  added=len(rows.added), held_out=len(rows.held_out), probe=tuple(probe))
        session.release_model()
        metrics = train_in_subprocess(job, [*rows.own, *rows.added, *rows.held_out], place, choice.processes)
    except (BackendUnavailable, CannotBeImported) as error:
        if choice.name == PLAIN or profile.backend.training != "auto":
            raise
        say(f"{choice.name} is not used: {error}")
        return Choice(PLAIN, f"no {choice.name}: {error}"), None
    for file in (place / "adapter").iterdir():
        os.replace(file, folder / file.name)
    os.replace(place / LOG, folder / SCRATCH / LOG)
    return choice, metrics
