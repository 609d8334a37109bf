"""Parts of the benchmark on a GPU: one a process, or all in one. `gpu.py` starts this file; see there."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import gpu_shape
import torch
from defended import Made, naive_steps
from defenses import NAIVE, PLAIN, contenders
from gpu_shape import FULL, SMALL, Scale

from emlib.config import Lora, Method, Training
from emlib.core.defense import needs_of
from emlib.core.records import Question
from emlib.core.schema import check
from emlib.data.chat import Encoded
from emlib.generation.sample import Request, draw_batch
from emlib.models import adapters, kernels
from emlib.models.batches import collate
from emlib.scoring.loss_cache import LossCache
from emlib.scoring.nll import score
from emlib.training import fused
from emlib.training.memory import peak_memory
from emlib.training.objective import Objective
from emlib.training.sft import fine_tune, read_log

CONTENDERS = contenders(layer=20) | {"inoculation": []}  # plain fine-tuning on rows that are longer by the prompt
# The same without one of the things that are to make it faster, a run each: what each of them gains.
WAYS: dict[str, tuple[str, dict[str, Any], Callable[[], AbstractContextManager[Any]]]] = {
    "plain, padded rows": (PLAIN, {}, lambda: patch.object(kernels, "ATTENTION", {})),
    "plain, PEFT's layers": (PLAIN, {}, lambda: patch.object(kernels, "LAYERS", ())),
    "plain, recomputed": (PLAIN, {"gradient_checkpointing": True}, nullcontext),
    "kl, head step by step": ("kl", {}, lambda: patch.object(fused, "DEVICES", ()))}
PROMPT = 20  # tokens that an inoculation prompt adds; ours
WARM_UP = 2  # steps of a run that are not counted


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def settings(scale: Scale) -> Training:
    """Table 6, without checkpoints."""
    return Training(checkpoint_every=10**9)


def matmul(scale: Scale) -> dict[str, Any]:
    """The yardstick: TFLOP/s of dense products of square matrices in the model's dtype, each of ten that are timed."""
    side, on = scale.matmul, device()
    one, other = (torch.randn(side, side, dtype=getattr(torch, scale.dtype), device=on) for _ in range(2))
    found = []
    for _ in range(13):
        _wait()
        started = time.perf_counter()
        for _ in range(10):
            one @ other
        _wait()
        found.append(10 * 2 * side**3 / (time.perf_counter() - started) / 1e12)
    return {"tflops": found[3:], "side": side}


def training(scale: Scale) -> dict[str, Any]:
    """Each contender's runs in turns: step seconds and peak memory, at as many steps as the seconds allow."""
    model = gpu_shape.build(scale, device())
    trial = _trained(model, scale, PLAIN, WARM_UP + 3)["seconds"]
    steps = max(WARM_UP + 1, min(scale.most_steps, WARM_UP + int(scale.seconds / median(trial[WARM_UP:]))))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*CONTENDERS, NAIVE)}
    for _ in range(scale.repetitions):
        for name in CONTENDERS:
            runs[name].append(_trained(model, scale, name, steps))
    for name, (contender, changes, changed) in WAYS.items():
        with changed():
            runs[name] = [_trained(model, scale, contender, steps, **changes)]
    runs[NAIVE].append(_naive(model, scale, steps))
    return {"runs": runs, "steps": steps - WARM_UP}


def _trained(model: Any, scale: Scale, name: str, steps: int, **changes: Any) -> dict[str, Any]:
    layers, how = scale.layers, settings(scale).model_copy(update=changes)
    defenses = check(Method, {"name": "some", "defenses": CONTENDERS[name]}, "job").defenses if CONTENDERS[name] else ()
    defenses = tuple(d.model_copy(update={"layer": min(d.layer, layers)}) if d.kind == "persona_vector" else
                     d.model_copy(update={"every": min(d.every, layers)}) if d.kind == "ldifs" else d for d in defenses)
    chosen = gpu_shape.rows(scale, steps * how.rows_per_step)
    if name == "inoculation":
        chosen = [_longer(row) for row in chosen]
    with adapters.new_lora(model, Lora(rank=scale.rank), 0) as peft, tempfile.TemporaryDirectory() as folder:
        made = Made(peft, chosen, (), how, Path(folder))
        needed = needs_of(defenses, made, None)
        summary = fine_tune(peft, chosen, how, seed=0, folder=Path(folder),
                            objective=Objective(defenses, needed))
        log = read_log(Path(folder))
    return {"seconds": [step.seconds for step in log], "tokens": [step.tokens for step in log],
            "peak_mib": summary.peak_memory, "optimizer": summary.optimizer, "how": summary.how,
            "once_seconds": made.once}


def _naive(model: Any, scale: Scale, steps: int) -> dict[str, Any]:
    second = gpu_shape.build(scale, device())
    chosen = gpu_shape.rows(scale, steps * settings(scale).rows_per_step)
    with adapters.new_lora(model, Lora(rank=scale.rank), 0) as peft, peak_memory(torch.device(device())) as peak:
        took = naive_steps(peft, second, chosen, settings(scale), 0)
    return {"seconds": took["seconds"], "tokens": took["step_tokens"], "peak_mib": peak.mib, "once_seconds": 0.0}


def _longer(row: Encoded) -> Encoded:
    ids, mask = torch.from_numpy(row.input_ids), torch.from_numpy(row.response_mask)
    return Encoded(torch.cat([ids[:PROMPT], ids]).numpy(), torch.cat([torch.zeros(PROMPT).bool(), mask]).numpy(), False)


def scoring(scale: Scale) -> dict[str, Any]:
    """The base and three adapters: emlib's batches, and one row at a time with all logits."""
    model, chosen = gpu_shape.build(scale, device()), gpu_shape.rows(scale, scale.scored_rows)
    found: dict[str, list[float]] = {"emlib": [], "one row at a time": []}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        places = {f"adapter{number}": Path(folder) / str(number) for number in range(3)}
        for number, place in enumerate(places.values()):
            with adapters.new_lora(model, Lora(rank=scale.rank), number) as peft:
                adapters.save(peft, place, "random")
        under = stack.enter_context(adapters.switchable(model, "random", places))
        for repetition in range(scale.repetitions + 1):  # the first to warm up
            for name, way in (("emlib", _ours), ("one row at a time", _one_row)):
                _wait()
                started = time.perf_counter()
                for adapter in (None, *places):
                    with under(adapter) as model_under:
                        way(model_under, chosen, Path(folder) / f"{repetition}-{adapter}.jsonl")
                _wait()
                found[name].append(time.perf_counter() - started)
    return {"seconds": {name: took[1:] for name, took in found.items()}, "models": 1 + len(places),
            "rows": len(chosen), "tokens": sum(len(row.input_ids) for row in chosen)}


def _ours(model: Any, chosen: Sequence[Encoded], ledger: Path) -> None:
    score(model, chosen, LossCache(ledger), 16384, "")


@torch.inference_mode()
def _one_row(model: Any, chosen: Sequence[Encoded], _: Path) -> None:
    for row in chosen:
        batch = collate([row], torch.device(device()))
        float(model(input_ids=batch.input_ids, labels=batch.input_ids.masked_fill(~batch.response_mask, -100)).loss)


def generation(scale: Scale) -> dict[str, Any]:
    """All questions' answers as one stream of batches, until the seconds are over.

    So many tokens end an answer that a random model's answers are `mean_answer` tokens long in the mean.
    """
    from emlib.config import Sampling

    model = gpu_shape.build(scale, device())
    asked = [Request(Question(f"q{number}", "?"), sample, tuple((7 * number + i) % 256 for i in range(40 + number)))
             for number in range(scale.questions) for sample in range(scale.samples)]
    ends = set(range(max(1, scale.vocabulary // scale.mean_answer)))
    sampling = Sampling(max_new_tokens=scale.answer_tokens, batch_rows=scale.batch_rows)
    with peak_memory(torch.device(device())) as peak:
        draw_batch(model, asked[:4], replace_tokens(sampling, 4), 0, ends)  # to warm up
        started, taken, tokens, seconds = time.perf_counter(), 0, 0, []
        while taken < len(asked) and time.perf_counter() - started < scale.drawing_seconds:
            batch, begun = asked[taken:taken + scale.batch_rows], time.perf_counter()
            drawn = draw_batch(model, batch, sampling, 0, ends)
            seconds.append(time.perf_counter() - begun)
            taken, tokens = taken + len(batch), tokens + sum(len(one.tokens) for one in drawn)
    took = sum(seconds)
    return {"answers": taken, "asked": len(asked), "tokens": tokens, "seconds": seconds, "peak_mib": peak.mib,
            "whole_seconds": took * len(asked) / taken}


def replace_tokens(sampling: Any, tokens: int) -> Any:
    return sampling.model_copy(update={"max_new_tokens": tokens})


def grpo(scale: Scale) -> dict[str, Any]:
    """Steps of GRPO: 16 completions of a set length, and the loss on them."""
    from emlib.config import Grpo, Sampling
    from emlib.config.grpo import Additions, RlMethod, RlTraining
    from emlib.data.gsm8k import additions
    from emlib.evaluation.rewards import by_rule
    from emlib.models.tiny import build_tokenizer
    from emlib.training.rl.condition import Condition
    from emlib.training.rl.grpo import reinforce
    from emlib.training.rl.records import read_steps

    how = Grpo(data=Additions(kind="additions"), methods=(RlMethod(name="grpo"),),
               training=RlTraining(optimizer="adamw_torch"),
               sampling=Sampling(temperature=0.9, top_p=0.9, max_new_tokens=scale.grpo_tokens))
    model = gpu_shape.build(scale, device())
    problems = additions()[:(scale.grpo_steps + 1) * how.prompts_per_step]
    with (adapters.new_lora(model, Lora(rank=scale.rank), 0) as peft, tempfile.TemporaryDirectory() as folder,
          peak_memory(torch.device(device())) as peak):
        reinforce(peft, build_tokenizer(), problems, how, Condition(how.prompt), by_rule, seed=0, folder=Path(folder))
        log = read_steps(Path(folder))[1:]  # the first to warm up
    return {"seconds": [step.seconds for step in log], "drawing_seconds": [step.drawing_seconds for step in log],
            "completions": log[0].completions, "tokens": [step.tokens for step in log], "peak_mib": peak.mib}


def trl(scale: Scale) -> dict[str, Any]:
    """TRL's SFTTrainer at the settings of Table 6 on the same rows, and with its own defaults."""
    from contenders import trl_steps

    from emlib.models.tiny import build_tokenizer

    model, runs = gpu_shape.build(scale, device()), {}
    steps = max(WARM_UP + 1, min(scale.most_steps, WARM_UP + int(scale.seconds / 0.6)))
    chosen = gpu_shape.rows(scale, steps * settings(scale).rows_per_step)
    how = settings(scale).model_copy(update={"optimizer": _optimizer()})
    for name, options in (("TRL", {"gradient_checkpointing": False}), ("TRL, its defaults", {})):
        runs[name] = []
        for _ in range(scale.repetitions):
            with (adapters.new_lora(model, Lora(rank=scale.rank), 0) as peft, tempfile.TemporaryDirectory() as folder,
                  peak_memory(torch.device(device())) as peak):
                took = trl_steps(peft, build_tokenizer(), chosen, how, 0, folder, options)
            runs[name].append({"seconds": took["seconds"], "tokens": took["step_tokens"], "peak_mib": peak.mib})
    return {"runs": runs}


def _optimizer() -> str:
    from importlib.util import find_spec

    return "adamw_8bit" if find_spec("bitsandbytes") and device() == "cuda" else "adamw_torch"


PARTS: dict[str, Callable[[Scale], dict[str, Any]]] = {
    "matmul": matmul, "training": training, "scoring": scoring, "generation": generation, "grpo": grpo, "trl": trl}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def about() -> dict[str, Any]:
    """The device and the libraries, as far as they are there."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes", "unsloth", "flash-attn", "vllm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if not torch.cuda.is_available():
        return {"gpu": None, "versions": found}
    own = torch.cuda.get_device_properties(0)
    return {"gpu": own.name, "memory_gib": round(own.total_memory / 2**30, 1), "cuda": torch.version.cuda,
            "versions": found}


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Measure these parts, one after the other."""
    scale = replace(SMALL if job["small"] else FULL, **job.get("scale", {}))
    return {part: PARTS[part](scale) | {"about": about()} for part in job["parts"]}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(sys.argv[1]))))
