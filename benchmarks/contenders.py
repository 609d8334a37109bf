"""One contender of the training benchmark, in a process of its own: train, and write what it took as JSON.

Both libraries get the same model with the same fresh adapter, the same token ids and labels in the same order, and the
optimizer settings of the profile. `training_cpu.py` starts this file; it is not meant to be called by hand.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import machine
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback

from emlib.config import Training, load_profile
from emlib.core import paths
from emlib.data.chat import Encoded, encode_all
from emlib.data.mixing import plan_steps
from emlib.data.rows import read_examples
from emlib.data.sources import locate
from emlib.models.adapters import new_lora
from emlib.models.load import load
from emlib.training.sft import fine_tune, read_log

NEVER = 10**9


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Load, train, and report. `options` is None for emlib, and TRL's further settings for TRL."""
    profile = load_profile(job["profile"])
    settings = profile.training.model_copy(update={"checkpoint_every": NEVER})  # neither side writes any
    chat = load(profile.model.model_copy(update={"dtype": job["dtype"]}), paths.cache())
    examples = read_examples(locate(job["source"]))[:job["rows"]]
    rows = encode_all(chat.tokenizer, examples, settings.max_seq_length).rows
    with new_lora(chat.model, profile.lora, job["seed"]) as model, tempfile.TemporaryDirectory() as scratch:
        loaded, others = machine.memory_mib("VmRSS"), machine.Others()
        if job["options"] is None:
            took = emlib_steps(model, rows, settings, job["seed"], Path(scratch))
        else:
            took = trl_steps(model, chat.tokenizer, rows, settings, job["seed"], scratch, job["options"])
        share = others.share()
    return {
        **took, "tokens": sum(len(row.input_ids) for row in rows), "others": share, "loaded_mib": loaded,
        "response_tokens": sum(row.response_tokens for row in rows), "peak_mib": machine.memory_mib("VmHWM"),
        "threads": torch.get_num_threads(), "versions": versions(job["options"] is not None)}


def emlib_steps(model: PeftModel, rows: Sequence[Encoded], settings: Training, seed: int,
                folder: Path) -> dict[str, Any]:
    """Our loop; seconds and losses of each step are those of its log."""
    started = time.perf_counter()
    fine_tune(model, rows, settings, seed=seed, folder=folder)
    call = time.perf_counter() - started
    log = read_log(folder)
    return {"seconds": [step.seconds for step in log], "losses": [step.loss for step in log], "call_seconds": call}


def trl_steps(model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded], settings: Training,
              seed: int, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer; a step's seconds run from its first forward pass to its update."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    clock = Clock()
    order = [row for step in plan_steps(len(rows), settings.rows_per_step, settings.epochs, seed) for row in step]
    arguments = SFTConfig(
        output_dir=folder, use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no", logging_steps=1,
        disable_tqdm=True,
        seed=seed, train_sampling_strategy="sequential", num_train_epochs=1, max_length=settings.max_seq_length,
        learning_rate=settings.learning_rate, warmup_steps=settings.warmup_steps, optim=settings.optimizer,
        lr_scheduler_type=settings.scheduler, weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        **{"per_device_train_batch_size": settings.batch_size,
           "gradient_accumulation_steps": settings.gradient_accumulation} | options)
    trainer = SFTTrainer(model, args=arguments, train_dataset=Dataset.from_list([labelled(rows[i]) for i in order]),
                         processing_class=tokenizer, callbacks=[clock])
    started = time.perf_counter()
    trainer.train()
    call = time.perf_counter() - started
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    each = [sum(len(rows[i].input_ids) for i in order[start:start + settings.rows_per_step])
            for start in range(0, len(order), settings.rows_per_step)]
    return {"seconds": clock.seconds, "losses": losses, "call_seconds": call, "step_tokens": each}


class Clock(TrainerCallback):
    """Takes the time of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The step's rows are padded and ready."""
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The weights are updated."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(round(time.perf_counter() - self.started, 4))


def labelled(row: Encoded) -> dict[str, list[int]]:
    """A row in TRL's pre-tokenized form: -100 where the loss does not count."""
    ids = row.input_ids.tolist()
    labels = [token if counts else -100 for token, counts in zip(ids, row.response_mask, strict=True)]
    return {"input_ids": ids, "labels": labels}


def versions(with_trl: bool) -> dict[str, str]:
    """The libraries that did the work."""
    names = ["torch", "transformers", "peft", "accelerate", *(["trl"] if with_trl else [])]
    return {"python": sys.version.split()[0]} | {name: version(name) for name in names}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(sys.argv[1]))))
