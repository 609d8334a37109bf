"""A model with a new adapter by Unsloth: its kernels with the study's loss. Unsloth must be imported before.

These properties of Unsloth 2026.10 matter here; they are from its source, and were observed on a CPU with interpreted
kernels. The backbone iterates over its list of blocks, so that wrappers around a block (`emlib.models.hooks`) work; it
is causal even without its head, as here; gradient checkpointing is transformers'. In training it ignores a padding
mask, which rows padded on the right do not need. Restarting positions do not separate packed rows, and rows longer than
max_seq_length are truncated. With the adapter off, its kernels use only the frozen weights. The adapter is float32,
computes in the model's dtype, and is initialised with other random numbers than PEFT's: a job states PEFT's weights to
begin with (`Job.start`), so that one seed is one adapter under both libraries.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel

from emlib.config import HubModel, Lora, ModelSpec, Training
from emlib.core.errors import SourceError
from emlib.core.seeds import derive
from emlib.models.source import source_of


@contextmanager
def new_lora(spec: ModelSpec, cache: Path, settings: Lora, training: Training, seed: int) -> Iterator[PeftModel]:
    """Load the model of a profile with a new adapter, on the GPU, until this process ends.

    Raises:
        SourceError: Unsloth was not imported before transformers, or cannot load the model.
    """
    if "unsloth" not in sys.modules:
        raise SourceError("Unsloth must be imported before transformers, but was not; `emlib.training.worker` "
                          "does that.")
    loader = importlib.import_module("unsloth").FastLanguageModel
    source, where = source_of(spec, cache)
    place = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    try:
        base, _ = loader.from_pretrained(
            source, max_seq_length=training.max_seq_length, dtype=getattr(torch, spec.dtype),
            load_in_4bit=isinstance(spec, HubModel) and spec.load_in_4bit, trust_remote_code=False,
            use_exact_model_name=True,  # otherwise it may load its own copy, and ignore the revision
            device_map={"": place}, offload_embedding=False,  # otherwise it may split the model over GPUs and host
            use_gradient_checkpointing=training.gradient_checkpointing is True, use_safetensors=True, **where)
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise SourceError(f"{spec.name}: Unsloth cannot load this model. {error}\nSet backend.training to "
                          "'transformers'.") from error
    yield loader.get_peft_model(
        base, r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, use_rslora=settings.rslora,
        target_modules=list(settings.target_modules), bias="none", random_state=derive(seed, "lora") % 2**31,
        use_gradient_checkpointing=training.gradient_checkpointing is True)
