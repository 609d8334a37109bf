"""Sampling answers on a CPU: emlib's decoder, the model's own forward pass, and transformers' `generate`.

The model of the profile `demo` under a fresh adapter that changes every layer; answers of a fixed length to its general
questions, with the same prompts for all. Each run is a process of its own with one thread. What is compared is the
processor's time, which does not depend on what else the machine does; that of building and proving the decoder is a
column of its own, because it is spent once for each adapter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NAME = "generation_cpu"
GENERATE = "transformers' generate"
CONTENDERS = ("decoder", "own forward pass", GENERATE)
ROWS, TOKENS = (48, 96), int(os.environ.get("EMLIB_BENCH_TOKENS", "48"))
BARS = {"float32": 2.5, "bfloat16": 3.0}


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """All runs."""
    found = []
    for dtype in BARS:
        for rows in ROWS:
            for contender in CONTENDERS:
                found.append(run({"contender": contender, "dtype": dtype, "rows": rows, "tokens": TOKENS}))
                say(f"{contender}, {dtype}, {rows} rows: {found[-1]['tokens_a_second']} tokens a second")
    return {"tokens": TOKENS, "runs": found, "bars": bars(found)}


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """One process from start to end."""
    ended = subprocess.run([sys.executable, __file__, json.dumps(job)], capture_output=True, text=True,
                           env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    if ended.returncode != 0:
        raise SystemExit(f"{job} stopped with an error:\n{ended.stderr[-3000:]}")
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Load the model, sample, and report."""
    import time

    import torch

    from emlib.config import Sampling
    from emlib.core import paths
    from emlib.generation.decoder import decoder_for
    from emlib.generation.sample import draw_batch, plan
    from emlib.models import adapters
    from emlib.models.load import load
    from emlib.study.study import open_study

    torch.set_num_threads(1)
    study = open_study("demo")
    chat = load(study.profile.model.model_copy(update={"dtype": job["dtype"]}), paths.cache())
    questions = study.inputs.general.all
    batches = plan(questions, -(-job["rows"] // len(questions)), chat.tokenizer, job["rows"])
    with adapters.new_lora(chat.model, study.profile.lora, 0) as model:
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.02, generator=torch.Generator().manual_seed(0))
        model.eval()
        started = time.process_time()
        decoder, reason = decoder_for(model) if job["contender"] == "decoder" else (None, "")
        built = time.process_time() - started
        if reason:
            raise SystemExit(reason)
        started = time.process_time()
        if job["contender"] == GENERATE:
            generated(model, [request.prompt_ids for request in batches[0]], job["tokens"])
        else:  # no stop token, so that all have as many
            draw_batch(model, batches[0], Sampling(max_new_tokens=job["tokens"]), 0, {-1}, decoder=decoder)
        seconds = time.process_time() - started
    return {**job, "rows": len(batches[0]), "cpu_seconds": round(seconds, 2), "once_seconds": round(built, 2),
            "tokens_a_second": round(len(batches[0]) * job["tokens"] / seconds, 1)}


def generated(model: Any, prompts: list[tuple[int, ...]], tokens: int) -> None:
    """Sample by transformers, from prompts that are padded on the left."""
    import torch

    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        model.generate(input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                       min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)


def bars(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is asked, what was measured, and whether that is enough."""
    speed = {(one["contender"], one["dtype"], one["rows"]): one["tokens_a_second"] for one in runs}
    found = []
    for contender, dtype, rows in speed:
        if contender == "decoder":
            measured = round(speed[contender, dtype, rows] / speed[GENERATE, dtype, rows], 2)
            found.append({"what": f"the decoder against {GENERATE}, {dtype}, {rows} rows", "measured": measured,
                          "bar": f">= {BARS[dtype]}", "met": measured >= BARS[dtype]})
    return found


def table(result: Mapping[str, Any]) -> list[str]:
    """The runs as Markdown."""
    lines = ["| contender | dtype | rows | tokens a second of one thread | paid once, s |", "|---|---|---:|---:|---:|"]
    return lines + [f"| {one['contender']} | {one['dtype']} | {one['rows']} | {one['tokens_a_second']} | "
                    f"{one['once_seconds']} |" for one in result["runs"]]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    print(json.dumps(child(json.loads(sys.argv[1]))))
