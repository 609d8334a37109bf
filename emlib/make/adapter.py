"""Training an adapter: in this process, or in a subprocess for another library or for several GPUs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emlib.core.files import read_appended, write_records
from emlib.core.plugins import CannotBeImported
from emlib.core.progress import say
from emlib.core.records import ADDED, AddedRow
from emlib.data import row_record
from emlib.evaluation.records import MONITOR, READINGS
from emlib.make import backends
from emlib.make.backends import TRANSFORMERS, ChosenBackend
from emlib.make.rows import training_rows
from emlib.make.session import Session, maker
from emlib.models import adapters
from emlib.models.logprobs import token_logprobs
from emlib.steps.adapter import Adapter, KeptAdapter
from emlib.steps.scorers import ADAPTER_FILES
from emlib.store.artefacts import SCRATCH, Facts
from emlib.training.in_subprocess import BackendUnavailable, train_in_subprocess
from emlib.training.job import Job, plugin_files, sources
from emlib.training.keep import FACTS, Keep, kept_in
from emlib.training.live import Curve
from emlib.training.monitor import Watch
from emlib.training.objective import Objective
from emlib.training.online import CHOSEN, ChosenRow
from emlib.training.records import LOG
from emlib.training.rows import TrainingRows
from emlib.training.sft import fine_tune

TRAINED_BY = ("backend", "backend_why", "processes", "device")  # facts of a training that what it keeps has as well


@dataclass(frozen=True)
class _Training:
    """A training of an adapter, and what it needs."""

    step: Adapter
    rows: TrainingRows
    artefacts: Mapping[str, Path]  # the folders of what its defenses need
    start: Path | None  # the folder of the adapter that it begins with
    keep: tuple[float, ...]  # the shares of its steps after which the adapter is kept as well
    then_stop: bool  # whether it ends at the last of these
    watch: Watch | None


@dataclass(frozen=True)
class _Trained:
    """A finished training."""

    rows: TrainingRows
    scratch: Path  # the folder of the log, checkpoints and what is kept
    facts: Facts


@maker.register
def make(step: Adapter, session: Session, folder: Path) -> Facts:
    """Fine-tune an adapter under its defenses, and save it with its log and the interleaved rows.

    The adapters that are kept after some of its steps become artefacts of their own.
    """
    trained = _train(step, session, folder, step.spec.keep)
    rows, scratch, facts = trained.rows, trained.scratch, trained.facts
    _store_kept(step, step.spec.keep, trained, session)
    shutil.copyfile(folder / SCRATCH / LOG, folder / LOG)
    if step.spec.monitor is not None:
        shutil.copyfile(scratch / READINGS, folder / READINGS)
        facts = {**facts, MONITOR: step.spec.monitor.inputs.key}  # no part of the adapter's key: others may differ
    earlier = () if step.start is None else step.start.seen
    row_record.write(folder, [*earlier, *(row for place, row in enumerate(step.spec.rows.examples)
                                          if place not in rows.filtered)])
    if (scratch / CHOSEN).is_file():
        shutil.copyfile(scratch / CHOSEN, folder / CHOSEN)
    if added := [*rows.records, *_chosen_during(scratch / CHOSEN, rows.candidates)]:
        write_records(folder / ADDED, added)
    planned = "" if facts["steps"] == facts["planned_steps"] else f" of {facts['planned_steps']}"
    say(f"{step.name}: {facts['steps']}{planned} steps, {facts['tokens']} tokens, {facts['seconds']:.0f} s, "
        f"loss {facts['final_loss']:.3f}, {facts['truncated_rows']} rows truncated")
    return facts


@maker.register
def kept(step: KeptAdapter, session: Session, folder: Path) -> Facts:
    """Train an adapter again up to a step after which it was not kept; its steps until there are the same.

    Earlier ones that are missing become artefacts as well. Later ones were made before, if any: no process that holds
    the lock of one waits for that of a later one.
    """
    say(f"{step.title}: was not kept when this adapter was trained, so it is trained again up to there.")
    again = folder / SCRATCH / "again"
    (again / SCRATCH).mkdir(parents=True, exist_ok=True)
    earlier = tuple(share for share in step.adapter.spec.keep if share < step.share
                    and session.store.find(KeptAdapter(step.adapter, share)) is None)
    trained = _train(step.adapter, session, again, (*earlier, step.share), then_stop=True)
    _store_kept(step.adapter, earlier, trained, session)
    whole = session.store.find(step.adapter)
    if whole is not None and (before := _by(whole.facts)) != (now := _by(trained.facts)):
        say(f"{step.title}: is trained by {now}, and the whole adapter was by {before}. Its steps are the same up to "
            "rounding and the random numbers of dropout.")
    return _take(kept_in(trained.scratch, step.share), trained.facts, folder)


def _by(facts: Facts) -> str:
    """Return what trained an adapter, in words."""
    processes = f" in {facts['processes']} processes" if "processes" in facts else ""
    return f"{facts.get('backend')} on {facts.get('device')}{processes}"


def _store_kept(step: Adapter, shares: Iterable[float], trained: _Trained, session: Session) -> None:
    """Make artefacts of what a training kept after these shares of its steps."""
    for share in shares:
        kept_there = kept_in(trained.scratch, share)
        if kept_there.is_dir():  # not if it is wanted only since the training began
            session.store.get(KeptAdapter(step, share), partial(_take, kept_there, trained.facts))


def _take(kept: Path, training: Facts, folder: Path) -> Facts:
    """Move a kept adapter into the folder of its artefact, and return its facts, with what trained it."""
    facts = json.loads((kept / FACTS).read_text(encoding="utf-8"))
    for name in ADAPTER_FILES:
        shutil.copyfile(kept / name, folder / name)
    return {**facts, **{name: training[name] for name in TRAINED_BY if name in training}}


def _train(step: Adapter, session: Session, folder: Path, keep: tuple[float, ...], *,
           then_stop: bool = False) -> _Trained:
    """Train an adapter and save it into `folder`."""
    artefacts = {name: session.folder_of(needed) for name, needed in step.artefacts}
    start = None if step.start is None else session.folder_of(step.start)
    rows = training_rows(session, step.spec, artefacts)
    monitor = None if then_stop else step.spec.monitor
    watch = None if monitor is None else Watch(session.folder_of(monitor.inputs), monitor.settings, Curve(step.name))
    return _by_chosen_backend(_Training(step, rows, artefacts, start, keep, then_stop, watch), session, folder)


def _by_chosen_backend(training: _Training, session: Session, folder: Path) -> _Trained:
    """Train with the backend that the profile and this machine choose.

    If another library cannot start and the profile says `auto`, transformers trains, and its choice has the reason.
    """
    profile, rows = session.profile, training.rows
    facts = {**rows.facts, **session.facts, "commit": session.chat.commit}  # read while the model is loaded
    choice = backends.training(profile.backend.training, profile.model, processes=profile.job.gpus)
    if choice.name != TRANSFORMERS or choice.processes > 1:
        place = folder / SCRATCH / choice.name
        try:
            return _Trained(rows, place, facts | _elsewhere(training, session, choice, place, folder) | choice.facts)
        except (BackendUnavailable, CannotBeImported) as error:
            if choice.name == TRANSFORMERS or profile.backend.training != "auto":
                raise
            say(f"{choice.name} is not used: {error}")
            choice = ChosenBackend(TRANSFORMERS, f"no {choice.name}: {error}")
    return _Trained(rows, folder / SCRATCH, facts | _here(training, session, folder) | choice.facts)


def _here(training: _Training, session: Session, folder: Path) -> dict[str, Any]:
    """Train in this process, and return the metrics."""
    step, rows, spec = training.step, training.rows, training.step.spec
    with adapters.new_lora(session.chat.model, step.lora, spec.seed, training.start) as model:
        save = partial(adapters.save, model, base_name=session.chat.name)
        summary = fine_tune(
            model, rows.own, spec.training, seed=spec.seed, folder=folder / SCRATCH,
            objective=Objective(spec.defenses, training.artefacts), added=rows.added, held_out=rows.held_out,
            offered=rows.offered, keep=Keep(training.keep, save, training.then_stop), limit=spec.steps,
            watch=training.watch)
        save(folder)
    return vars(summary)


def _elsewhere(training: _Training, session: Session, choice: ChosenBackend, place: Path,
               folder: Path) -> dict[str, Any]:
    """Train with another library, or in several processes, and release this process's model meanwhile."""
    if training.start is None and choice.name != TRANSFORMERS:
        training = replace(training, start=_drawn(training.step, session, place / "drawn"))
    job = _job(training, session, choice)
    session.release_model()
    rows = training.rows
    metrics = train_in_subprocess(
        job, [*rows.own, *rows.added, *rows.held_out, *rows.offered.rows], place, choice.processes)
    for file in (place / "adapter").iterdir():
        os.replace(file, folder / file.name)
    shutil.copyfile(place / LOG, folder / SCRATCH / LOG)  # the checkpoint beside it resumes only with its log
    return metrics


def _drawn(step: Adapter, session: Session, folder: Path) -> Path:
    """Save the adapter as it is before its first step, for another library, which would draw other weights."""
    with adapters.new_lora(session.chat.model, step.lora, step.spec.seed) as model:
        adapters.save(model, folder, session.chat.name)
    return folder


def _chosen_during(record: Path, candidates: Sequence[AddedRow]) -> list[AddedRow]:
    """Return the rows that were chosen during training, in the order in which they were trained on."""
    return [replace(candidates[one.candidate], rank=rank, score=one.score,
                    reason=f"chosen for step {one.step} from {len(candidates)} candidates")
            for rank, one in enumerate(read_appended(record, ChosenRow), start=1)]


def _job(training: _Training, session: Session, choice: ChosenBackend) -> Job:
    step, rows, spec, watch = training.step, training.rows, training.step.spec, training.watch
    probe = token_logprobs(session.chat.model, torch.from_numpy(rows.own[0].input_ids).to(session.chat.device))
    return Job(engine=choice.name, model=session.profile.model,  # type: ignore[arg-type]  # one of Job's engines
               base_name=session.chat.name, lora=step.lora, training=spec.training,
               plugins=plugin_files(spec.defenses), sources=sources(spec.defenses), defenses=spec.defenses,
               artefacts={name: str(path.resolve()) for name, path in training.artefacts.items()}, seed=spec.seed,
               added=len(rows.added), held_out=len(rows.held_out), offered=len(rows.offered.rows),
               taken=rows.offered.count, chooser=rows.offered.kind, probe=tuple(probe), keep=training.keep,
               then_stop=training.then_stop, limit=spec.steps,
               start=None if training.start is None else str(training.start.resolve()),
               monitor=None if watch is None else (str(watch.inputs.resolve()), watch.settings))
