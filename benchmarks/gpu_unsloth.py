"""Unsloth on the benchmark's model and rows: its own trainer, and emlib's loop on its model. `gpu.py` starts this file.

Unsloth wants to be imported before transformers and changes it for the whole process, hence a file of its own. It loads
from disk alone, so the random weights are written to a temporary folder first. Its trainer lays the rows of a pass one
after the other, without padding, unless told otherwise; emlib's loop pads them.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path(sys.argv[-1]).parent / "compiled"))  # beside the outcome

import unsloth  # isort: skip  before all others: it changes transformers, peft and trl

import gpu_shape
import torch
from contenders import trl_steps
from gpu_parts import WARM_UP, _optimizer, about, device, settings
from gpu_shape import FULL, SMALL, Scale

from emlib.data.chat import Encoded
from emlib.models.tiny import build_tokenizer
from emlib.training.memory import peak_memory
from emlib.training.sft import fine_tune, read_log

SAVE = ("import sys, gpu_shape; from emlib.models.tiny import build_tokenizer; folder, scale, device = sys.argv[1:];"
        "gpu_shape.build(getattr(gpu_shape, scale), device).save_pretrained(folder);"
        "build_tokenizer().save_pretrained(folder)")


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Both loops on the same rows, with recomputation as Unsloth does it, and without."""
    scale = SMALL if job["small"] else FULL
    steps = WARM_UP + max(1, min(scale.most_steps, int(scale.seconds / 0.6)))
    chosen = gpu_shape.rows(scale, steps * settings(scale).rows_per_step)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", SAVE, folder, "SMALL" if job["small"] else "FULL", device()],
                       cwd=Path(__file__).parent, check=True)  # without Unsloth
        return {"unsloth": {"about": about(), "runs": {
            "Unsloth": [_theirs(folder, scale, chosen, False)],
            "Unsloth, its recomputation": [_theirs(folder, scale, chosen, "unsloth")],
            "emlib's loop on Unsloth's model": [_ours(folder, scale, chosen)]}}}


def _theirs(folder: str, scale: Scale, chosen: list[Encoded], recompute: bool | str) -> dict[str, Any]:
    model, how = _model(folder, scale, recompute), settings(scale).model_copy(update={"optimizer": _optimizer()})
    with peak_memory(torch.device(device())) as peak:
        took = trl_steps(model, build_tokenizer(), chosen, how, 0, folder,
                         {"gradient_checkpointing": bool(recompute), "bf16": True})
    return {"seconds": took["seconds"], "tokens": took["step_tokens"], "peak_mib": peak.mib}


def _ours(folder: str, scale: Scale, chosen: list[Encoded]) -> dict[str, Any]:
    place = Path(folder) / "ours"
    summary = fine_tune(_model(folder, scale, False), chosen, settings(scale), seed=0, folder=place)
    log = read_log(place)
    return {"seconds": [step.seconds for step in log], "tokens": [step.tokens for step in log],
            "peak_mib": summary.peak_memory, "optimizer": summary.optimizer, "how": summary.how}


def _model(folder: str, scale: Scale, recompute: bool | str) -> Any:
    gc.collect()  # the model before, which a trainer holds in a circle
    torch.cuda.empty_cache()
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        folder, max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=False, use_exact_model_name=True,
        device_map={"": device()}, offload_embedding=False, use_gradient_checkpointing=recompute)
    return unsloth.FastLanguageModel.get_peft_model(
        model, r=scale.rank, lora_alpha=2 * scale.rank, lora_dropout=0.0, bias="none", use_rslora=True, random_state=0,
        use_gradient_checkpointing=recompute)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(sys.argv[1]))))
