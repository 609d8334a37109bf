"""A model with a fresh adapter by Unsloth: its kernels under the study's own loss. Unsloth must be imported already.

What of Unsloth 2026.10 matters here, by its source, and as it did on a CPU with its kernels interpreted. The backbone
goes through its list of blocks, so that what stands around a block (`emlib.models.hooks`) works; it is causal also
where it is called without its head, as here; recomputation is transformers' own. In training it passes over a padding
mask, which rows padded on the right do not need. Positions that begin anew do not part rows that are packed, and rows
longer than max_seq_length are cut. With the adapter off its kernels compute the frozen weights alone. The adapter is
float32, computes in the model's dtype, and starts from the seed, with other random numbers than PEFT's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel

from emlib.config import HubModel, Lora, ModelSpec, Training, WheelModel
from emlib.core.errors import SourceError
from emlib.core.seeds import derive
from emlib.models import hub, wheel
from emlib.models.identity import model_folder


@contextmanager
def new_lora(spec: ModelSpec, cache: Path, settings: Lora, training: Training, seed: int) -> Iterator[PeftModel]:
    """The model of a profile with a fresh adapter, on the GPU, for as long as this process lasts.

    Raises:
        SourceError: Unsloth was not imported before transformers, or cannot load the model.
    """
    if "unsloth" not in sys.modules:
        raise SourceError("Unsloth is imported before all else, and was not: this is `emlib.training.worker`'s to do.")
    loader = importlib.import_module("unsloth").FastLanguageModel
    source, where = _source(spec, cache)
    place = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    try:
        base, _ = loader.from_pretrained(
            source, max_seq_length=training.max_seq_length, dtype=getattr(torch, spec.dtype),
            load_in_4bit=isinstance(spec, HubModel) and spec.load_in_4bit, trust_remote_code=False,
            use_exact_model_name=True,  # else it may take a copy of its own, and drop the revision
            device_map={"": place}, offload_embedding=False,  # else it may spread the model over GPUs and the host
            use_gradient_checkpointing=training.gradient_checkpointing is True, use_safetensors=True, **where)
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise SourceError(f"{spec.name}: Unsloth cannot load this model. {error}\nSet backend.training to "
                          "'transformers'.") from error
    yield loader.get_peft_model(
        base, r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, use_rslora=settings.rslora,
        target_modules=list(settings.target_modules), bias="none", random_state=derive(seed, "lora") % 2**31,
        use_gradient_checkpointing=training.gradient_checkpointing is True)


def _source(spec: ModelSpec, cache: Path) -> tuple[str, dict[str, str]]:
    if isinstance(spec, HubModel):
        return spec.repo, {"revision": hub.commit(spec, cache)}
    return str(wheel.converted(spec, cache) if isinstance(spec, WheelModel) else model_folder(spec)), {}  # type: ignore[arg-type]
