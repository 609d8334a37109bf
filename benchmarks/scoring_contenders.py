"""One contender of the scoring benchmark, in a process of its own: score the rows, and write what it took as JSON.

All get the same model, the same saved adapters and the same token ids. `scoring_cpu.py` starts this file; it is not
meant to be called by hand.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import machine
import torch
from contenders import versions
from peft import PeftModel

from emlib.config import ModelSpec, load_profile
from emlib.core import paths
from emlib.data.chat import Encoded, encode_all
from emlib.data.pools import read_pool
from emlib.data.sources import locate
from emlib.models import adapters
from emlib.models.batches import collate
from emlib.models.load import load
from emlib.scoring.loss_cache import LossCache
from emlib.scoring.nll import score

Losses = list[list[float]]  # a list for each model, in the order of the rows


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Load the first model, score everything, and report; loading that one counts for nobody, loading others does."""
    profile = load_profile(job["profile"])
    rows = read_pool(locate(job["source"]), "instruct").rows[:job["rows"]]
    chat = load(_spec(job), paths.cache())
    encoded = encode_all(chat.tokenizer, rows, profile.training.max_seq_length).rows
    folders = [Path(folder) for folder in job["adapters"]]
    others, started, busy = machine.Others(), time.perf_counter(), time.process_time()
    losses = CONTENDERS[job["contender"]](chat, encoded, folders, job)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds, "cpu_seconds": time.process_time() - busy, "losses": losses, "others": others.share(),
        "peak_mib": machine.memory_mib("VmHWM"),
        "passes": len(rows) * (len(folders) + 1), "tokens": sum(len(row.input_ids) for row in encoded),
        "threads": torch.get_num_threads(), "versions": versions(False)}


def emlib_scores(chat: Any, rows: Sequence[Encoded], folders: Sequence[Path], job: dict[str, Any]) -> Losses:
    """One base, adapters switched on it; batches of like length; logits of response tokens."""
    named, found = {f"adapter{n}": folder for n, folder in enumerate(folders)}, []
    with adapters.switchable(chat.model, chat.name, named) as under, tempfile.TemporaryDirectory() as scratch:
        for name in (None, *named):
            with under(name) as model:
                found.append(score(model, rows, LossCache(Path(scratch) / f"{name}.jsonl"), job["token_budget"], ""))
    return found


def plain(chat: Any, rows: Sequence[Encoded], folders: Sequence[Path], job: dict[str, Any]) -> Losses:
    """One row at a time, a model loaded for each adapter beside the others, full logits, transformers' own loss."""
    models = [chat.model, *(_own_model(folder, job) for folder in folders)]
    return [[_loss(model, [row])[0] for row in rows] for model in models]


def one_after_another(chat: Any, rows: Sequence[Encoded], folders: Sequence[Path], job: dict[str, Any]) -> Losses:
    """As `plain`, but each model goes before the next is loaded."""
    found = [[_loss(chat.model, [row])[0] for row in rows]]
    for folder in folders:
        model = _own_model(folder, job)
        found.append([_loss(model, [row])[0] for row in rows])
    return found


def padded(chat: Any, rows: Sequence[Encoded], folders: Sequence[Path], job: dict[str, Any]) -> Losses:
    """Batches in the file's order, padded, with full logits; one base, one adapter on it at a time."""
    size, found = job["batch_rows"], []
    for folder in (None, *folders):
        with _under(chat, folder) as model:
            parts = [_loss(model, rows[start:start + size]) for start in range(0, len(rows), size)]
            found.append([loss for part in parts for loss in part])
    return found


def _under(chat: Any, folder: Path | None) -> Any:
    return nullcontext(chat.model) if folder is None else adapters.loaded(chat.model, folder)


def _spec(job: dict[str, Any]) -> ModelSpec:
    return load_profile(job["profile"]).model.model_copy(update={"dtype": job["dtype"]})


def _own_model(folder: Path, job: dict[str, Any]) -> PeftModel:
    base = load(_spec(job), paths.cache())
    return PeftModel.from_pretrained(base.model, str(folder)).eval()


@torch.inference_mode()
def _loss(model: Any, rows: Sequence[Encoded]) -> list[float]:
    """The mean NLL of each row's answer, from logits of every position."""
    batch = collate(rows, torch.device("cpu"))
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
    labels = batch.input_ids.masked_fill(~batch.response_mask, -100)
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    counts = batch.response_mask[:, 1:].sum(1)
    return (nll.view(len(rows), -1).sum(1) / counts).tolist()


CONTENDERS: dict[str, Callable[..., Losses]] = {
    "emlib": emlib_scores, "plain": plain, "plain, models one after another": one_after_another,
    "padded batches": padded}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(sys.argv[1]))))
