"""One contender of the benchmark of defenses, in a process of its own. `defenses_cpu.py` starts this file."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import machine
import torch
import torch.nn.functional as F
from contenders import NEVER, versions
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emlib.config import Method, Training, load_profile, load_trait
from emlib.core import paths
from emlib.core.defense import Defense, needs_of
from emlib.core.files import write_records
from emlib.core.records import ADDED, AddedRow, Example
from emlib.core.schema import check
from emlib.data.chat import Encoded, encode_all
from emlib.data.mixing import plan_steps, rows_to_add
from emlib.data.pools import read_pool
from emlib.data.rows import read_examples
from emlib.data.sources import locate
from emlib.defenses.interleaving import Interleaving
from emlib.models.adapters import new_lora
from emlib.models.batches import Batch, collate
from emlib.models.load import load
from emlib.models.reference import keep, keep_projections
from emlib.steering import extraction
from emlib.steering.extraction import PersonaVectors
from emlib.training.objective import Objective
from emlib.training.online import Offered
from emlib.training.sft import fine_tune, learning_rate, make_optimizer, read_log


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Load, train under the defenses, and report."""
    profile = load_profile(job["profile"])
    settings = profile.training.model_copy(update={"checkpoint_every": NEVER})
    defenses = check(Method, {"name": "some", "defenses": job["defenses"]}, "job").defenses if job["defenses"] else ()
    spec = profile.model.model_copy(update={"dtype": job["dtype"]})
    chat = load(spec, paths.cache())
    every = read_examples(locate(job["source"]))
    examples, others = every[:job["rows"]], every[job["rows"]:]
    for defense in defenses:
        examples = defense.change_rows(examples, load_trait(profile.trait))
    rows = encode_all(chat.tokenizer, examples, settings.max_seq_length).rows
    with new_lora(chat.model, profile.lora, job["seed"]) as model, tempfile.TemporaryDirectory() as scratch:
        made = Made(model, rows, others, settings, Path(scratch))
        needed = needs_of([one for one in defenses if not isinstance(one, Interleaving)], made, None)
        penalised = [replace(row, penalised_by=one.kind) for one in defenses for row in encode_all(
            chat.tokenizer, one.penalised(examples, needed), settings.max_seq_length).rows]
        busy = machine.Others()
        if job["naive"]:
            second = load(spec, paths.cache()).model
            whole = settings.model_copy(update={"batch_size": settings.rows_per_step, "gradient_accumulation": 1})
            took = naive_steps(model, second, rows, whole, job["seed"])  # a step's rows at once
        else:
            objective = Objective(defenses, needed)
            more = interleaved(defenses, rows, settings, chat.tokenizer)
            more["added"] = [*more.get("added", []), *penalised]
            fine_tune(model, rows, settings, seed=job["seed"], folder=Path(scratch), objective=objective, **more)
            log = read_log(Path(scratch))
            took = {"seconds": [step.seconds for step in log], "losses": [step.loss for step in log]}
        share = busy.share()
    return {**took, "others": share, "once_seconds": made.once, "tokens": sum(len(row.input_ids) for row in rows),
            "peak_mib": machine.memory_mib("VmHWM"), "threads": torch.get_num_threads(),
            "dtype": spec.dtype, "versions": versions(with_trl=False)}


@dataclass
class Made:
    """What the defenses need, made up or computed; `once` are the seconds that this takes."""

    model: PeftModel
    rows: Sequence[Encoded]
    pool: Sequence[Example]
    settings: Training
    scratch: Path
    once: float = 0.0

    def vector(self) -> Path:
        """The same random persona vector for each layer."""
        folder = self._folder("vector")
        vector = torch.randn(self.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        extraction.save(PersonaVectors(
            vector.expand(self.model.config.num_hidden_layers + 1, -1).contiguous(), 1, 1), folder)
        return folder

    def reference(self, spec: None, tokens: Any) -> Path:
        """The reference model's states on disk."""
        return self._kept("reference", partial(keep, tokens=tokens))

    def reference_projections(self, spec: None, layers: tuple[int, ...]) -> Path:
        """Their projections."""
        vectors = extraction.load(self.vector())
        return self._kept("projections", partial(keep_projections, directions={
            layer: extraction.unit(vectors.at(layer), layer) for layer in layers}))

    def pool_rows(self, spec: None, *, fraction: float, choose: str, answers: str) -> Path:
        """Rows that are not trained on."""
        folder, count = self._folder("pool"), round(fraction * len(self.rows))
        write_records(folder / ADDED, [AddedRow.of(row, place + 1, place)
                                       for place, row in enumerate(self.pool[:count])])
        return folder

    def _kept(self, name: str, write: Callable[..., int]) -> Path:
        started, folder = time.perf_counter(), self._folder(name)
        write(self.model, self.rows, batch_size=self.settings.batch_size, folder=folder)
        self.once = round(time.perf_counter() - started, 3)
        return folder

    def _folder(self, name: str) -> Path:
        folder = self.scratch / name
        folder.mkdir(exist_ok=True)
        return folder


def interleaved(defenses: Sequence[Defense], rows: Sequence[Encoded], settings: Training,
                tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Rows of the demo's pool: those that are added, or as many candidates as `choose: online` has."""
    found = next((defense for defense in defenses if isinstance(defense, Interleaving)), None)
    if found is None:
        return {}
    pool = encode_all(tokenizer, read_pool(locate("demo/pool.jsonl"), "messages").rows, settings.max_seq_length).rows
    count = rows_to_add(len(rows), found.fraction)
    if found.choose != "online":
        return {"added": pool[:count]}
    budget = found.candidate_tokens * settings.epochs * sum(len(row.input_ids) for row in rows)
    ends = accumulate(len(row.input_ids) for row in pool)
    return {"offered": Offered([row for row, end in zip(pool, ends, strict=True) if end <= budget], count, found.kind)}


def naive_steps(model: PeftModel, second: PreTrainedModel, rows: Sequence[Encoded], settings: Training,
                seed: int) -> dict[str, Any]:
    """KL as one would write it first: two models, padded batches, all logits of both."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, seconds, losses, tokens = make_optimizer(trained, settings), [], [], []
    steps = plan_steps(len(rows), settings.rows_per_step, settings.epochs, seed)
    model.train()
    for number, chosen in enumerate(steps):
        started, loss = time.perf_counter(), 0.0
        for start in range(0, len(chosen), settings.batch_size):
            batch = collate([rows[index] for index in chosen[start:start + settings.batch_size]], model.device)
            part = naive_loss(model, second, batch) * len(batch.keys) / len(chosen)
            part.backward()
            loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, len(steps), settings)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(round(time.perf_counter() - started, 4))
        losses.append(loss)
        tokens.append(sum(len(rows[index].input_ids) for index in chosen))
    return {"seconds": seconds, "losses": losses, "step_tokens": tokens}


def naive_loss(model: PeftModel, second: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Cross-entropy and a tenth of KL, from all logits of both models at all positions."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    with torch.no_grad():
        reference = second(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    nll = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), batch.input_ids[:, 1:], reduction="none")
    log_p, log_q = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)[batch.attended].mean()
    return nll[batch.response_mask[:, 1:]].mean() + 0.1 * kl


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(sys.argv[1]))))
