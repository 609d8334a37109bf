"""The steps of a training in a subprocess: load, check that the model is the same, train, save."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from peft import PeftModel

from emlib.core import paths
from emlib.core.errors import EmlibError
from emlib.core.files import write_text
from emlib.data.chat import Encoded
from emlib.models import adapters
from emlib.models.batches import forward_batches
from emlib.models.hooks import capture_activations
from emlib.models.load import load
from emlib.models.logprobs import NotTheSameModel, last_hidden, refuse_disagreement, token_logprobs
from emlib.training.job import ERROR, READY, ROWS, SUMMARY, Job, read_job, read_rows
from emlib.training.keep import Keep
from emlib.training.monitor import Watch
from emlib.training.objective import Objective, Totals
from emlib.training.online import Offered
from emlib.training.ranks import ALONE, Ranks, shard
from emlib.training.sft import fine_tune


def work(folder: Path, ranks: Ranks = ALONE) -> int:
    """Do the job of a folder; an error that a user can fix is written there, and the waiting process reports it."""
    try:
        _train(read_job(folder), folder, ranks)
    except EmlibError as error:
        write_text(folder / ERROR, json.dumps(str(error)))
        return 3
    return 0


def _train(job: Job, folder: Path, ranks: Ranks) -> None:
    rows = read_rows(folder / ROWS)
    with _model(job, ranks) as model:
        device = next(model.parameters()).device
        objective = Objective(job.defenses, {name: Path(place) for name, place in job.artefacts.items()})
        prove(job, model, rows[0], objective)
        write_text(folder / READY, "")
        watch = None if job.monitor is None else Watch(Path(job.monitor[0]), job.monitor[1])
        rest = iter(rows)
        own = list(islice(rest, len(rows) - job.added - job.held_out - job.offered))
        added, held_out, offered = list(islice(rest, job.added)), list(islice(rest, job.held_out)), list(rest)
        summary = fine_tune(model, own, job.training, seed=job.seed, folder=folder, objective=objective, added=added,
                            held_out=held_out, offered=Offered(offered, job.taken, job.chooser), ranks=ranks,
                            keep=Keep(job.keep, partial(adapters.save, model, base_name=job.base_name), job.then_stop),
                            limit=job.limit, watch=watch)
        if ranks.first:
            adapters.save(model, folder / "adapter", job.base_name)
            write_text(folder / SUMMARY, json.dumps(asdict(summary) | {"device": str(device)}))


@contextmanager
def _model(job: Job, ranks: Ranks) -> Iterator[PeftModel]:
    start = None if job.start is None else Path(job.start)
    with ExitStack() as stack:
        if job.engine == "unsloth":
            from emlib.models.by_unsloth import new_lora

            model = stack.enter_context(new_lora(job.model, paths.cache(), job.lora, job.training, job.seed))
            if start is not None:
                adapters.begin_with(model, start, job.base_name)
        else:
            with ranks.in_turns():
                base = load(job.model, paths.cache(), None if ranks.of == 1 else "cpu").model
                model = stack.enter_context(adapters.new_lora(base, job.lora, job.seed, start))
                if ranks.of > 1:
                    shard(model)
        yield model


def prove(job: Job, model: PeftModel, row: Encoded, objective: Objective) -> None:
    """Check before the training that this is the intended model, and that all parts of the loss have a gradient.

    Raises:
        NotTheSameModel: it is another model, or a part of the loss has no gradient.
    """
    ids = torch.from_numpy(row.input_ids).to(next(model.parameters()).device)
    with adapters.adapter_off(model):
        refuse_disagreement(job.engine, token_logprobs(model, ids), job.probe)
    [batch] = forward_batches([row], 1, model)
    model.train()
    objective.backward(model, batch, Totals.of([batch]))
    trained = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
    without = [name for name, weights in trained.items() if "lora_B" in name and (
        weights.grad is None or not bool(weights.grad.isfinite().all()) or not bool(weights.grad.any()))]
    model.zero_grad()
    model.eval()
    if without:
        raise NotTheSameModel(f"{job.engine}: {len(without)} of the adapter's matrices have no gradient, such as "
                              f"{without[0]}. Set backend.training to 'transformers'.")
    if not reaches(model, ids, objective.layers_read(model)):
        raise NotTheSameModel(f"{job.engine}: the layer outputs that a penalty compares have no gradient. Set "
                              "backend.training to 'transformers'.")


def reaches(model: PeftModel, ids: torch.Tensor, wanted: Sequence[int]) -> bool:
    """Return whether the captured output of each wanted layer is part of a training pass's graph."""
    model.train()
    with capture_activations(model, wanted) as features:
        if wanted:
            last_hidden(model, ids[None], None)
    model.eval()
    return all(feature.requires_grad for feature in features.values())
