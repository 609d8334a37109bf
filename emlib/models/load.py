"""Loads every model of the study: from the hub, a local folder, a PyPI wheel, or built in code."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from emlib.config import HubModel, ModelSpec, TinyModel
from emlib.core.errors import SourceError
from emlib.core.records import Example, Message
from emlib.data import templates
from emlib.data.chat import encode, refuse_blank
from emlib.models import hub, tiny
from emlib.models.logprobs import causal_lm, head, last_hidden
from emlib.models.source import source_of

LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # of Gemma, Cohere, Granite


@dataclass(frozen=True)
class ChatModel:
    """A causal language model, its tokenizer, its name in tables, and its commit if it is from the hub."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    commit: str | None = None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device


def load(spec: ModelSpec, cache: Path, device: str | None = None, *, system: bool = True) -> ChatModel:
    """Load the model of a profile, in evaluation mode, frozen, on the GPU if there is one.

    `device` overrides that. Weights are read as safetensors only, and code that comes with a model is never run.
    `system` says whether the model is given system prompts, which its chat template then has to take.

    Raises:
        SourceError: a file is missing, truncated, or not the expected one; or the chat template does not suit.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if spec.dtype == "auto":
        raise ValueError("dtype 'auto' is decided by the study (emlib.study.precision); load an opened study's model")
    if isinstance(spec, HubModel) and spec.load_in_4bit:
        model = _in_4bit(spec, getattr(torch, spec.dtype), cache, device)
    else:
        model = load_weights(spec, cache)
        nn.Module.to(model, device)
    model.eval().requires_grad_(False)
    check_logits(spec.name, model)
    commit = hub.commit(spec, cache) if isinstance(spec, HubModel) else None
    tokenizer = load_tokenizer(spec, cache, system=system)
    refuse_blank(tokenizer, spec.name)
    return ChatModel(spec.name, model, _checked_stop(spec.name, tokenizer, model), commit)


@torch.no_grad()
def check_logits(name: str, model: PreTrainedModel) -> None:
    """Refuse a model whose logits are not those of its head on the last hidden states, from which losses are computed.

    Options with known names are refused, and any other change is found on a few tokens, unless the model has no
    weights yet.
    """
    configs = (model.config, model.config.get_text_config())
    changed = [option for option in LOGIT_CHANGES
               if any(getattr(config, option, None) not in (None, 1.0) for config in configs)]
    if not changed and model.device.type != "meta":
        ids = torch.arange(1, 9, device=model.device)[None]
        logits, ours = model(input_ids=ids, use_cache=False).logits.float(), head(model)(last_hidden(model, ids, None))
        bound = float(max(2 * torch.finfo(model.dtype).eps, 1e-3) * logits.abs().max())
        if logits.shape != ours.shape or not torch.allclose(logits, ours.float(), rtol=0, atol=bound):
            changed = [f"its logits are not those of its head: {type(model).__name__}"]
    if changed:
        raise SourceError(f"{name}: this model changes its logits after the head ({', '.join(changed)}), which "
                          "the study's losses and sampling would ignore. Choose another model.")


def _checked_stop(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Return the tokenizer; refuse it unless its template ends a turn with a stop token."""
    row = encode(tokenizer, Example((Message("user", "Hi"),), "Hi", name), 10**6)
    closing = int(row.input_ids[-1])
    if closing not in stop_tokens(model, tokenizer):
        raise SourceError(f"{name}: the chat template closes a turn with {tokenizer.decode([closing])!r}, at which the "
                          f"model does not stop ({tokenizer.eos_token!r} is its end token). Set eos_token in its "
                          "tokenizer_config.json to the former.")
    return tokenizer


def stop_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return all stop tokens: the tokenizer's, and those of the model's generation config (Qwen has two)."""
    configured = causal_lm(model).generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}


def load_tokenizer(spec: ModelSpec, cache: Path, *, system: bool = True) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a profile's model, without its weights, and check its chat template.

    Raises:
        SourceError: a file is missing, or the chat template does not suit (`emlib.data.templates.check`).
    """
    tokenizer = templates.configure(_tokenizer(spec, cache), spec.template, spec.name)
    templates.check(tokenizer, spec.name, system=system)
    return tokenizer


def _tokenizer(spec: ModelSpec, cache: Path) -> PreTrainedTokenizerBase:
    if isinstance(spec, TinyModel):
        return tiny.build_tokenizer()
    source, where = source_of(spec, cache)
    with _load_errors(source):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)


def load_weights(spec: ModelSpec, cache: Path) -> PreTrainedModel:
    """Load a model's weights alone, in its `dtype` and whole, into the host's memory.

    Raises:
        SourceError: a file is missing, truncated, or not the expected one.
    """
    dtype = getattr(torch, spec.dtype)
    if isinstance(spec, TinyModel):
        return tiny.build_model(spec.seed, spec.layers, spec.hidden, dtype)
    source, where = source_of(spec, cache)
    return _pretrained(source, dtype, **where)


def _in_4bit(spec: HubModel, dtype: torch.dtype, cache: Path, device: str) -> PreTrainedModel:
    """Load the matrices of the blocks in 4 bits (NF4, with quantized scales), as in QLoRA."""
    if device != "cuda":
        raise SourceError(f"{spec.name}: 'model.load_in_4bit' needs a GPU, but there is none. Set it to false.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SourceError(f"{spec.name}: 'model.load_in_4bit' needs bitsandbytes, which is not installed. "
                          "Install it (requirements/gpu.txt), or set load_in_4bit to false.")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=dtype)
    return _pretrained(spec.repo, dtype, revision=hub.commit(spec, cache), quantization_config=quantization,
                       device_map={"": device})


def _pretrained(source: str, dtype: torch.dtype, **where: Any) -> PreTrainedModel:
    with _load_errors(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, revision=where.get("revision"))
        _refuse_kernels(source, config)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=False, **where)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise SourceError(f"{source}: this repository holds an adapter (adapter_config.json), which is loaded with the "
                          "model without a word. Name a model without one: merge the adapter into the weights (PEFT's "
                          "merge_and_unload), or name the model that it was trained on.")
    return model


def _refuse_kernels(source: str, config: PreTrainedConfig) -> None:
    """Refuse a configuration that names an implementation of attention on the hub: it would be downloaded and run."""
    for part in (config, *(getattr(config, name) for name in config.sub_configs if hasattr(config, name))):
        named = part._attn_implementation
        if named and "/" in named:
            raise SourceError(f"{source}: config.json names attention code on the hub ({named!r}), which would be "
                              "downloaded and run. Remove the entry from config.json.")


@contextmanager
def _load_errors(source: str) -> Iterator[None]:
    """Turn errors of reading the files of `source` into a SourceError."""
    try:
        yield
    except SafetensorError as error:
        raise SourceError(f"{source}: the weights are truncated or broken ({error}). Delete them and download "
                          "them again.") from error
    except (OSError, ValueError) as error:  # ValueError: a type of model that transformers does not know
        raise SourceError(f"{source}: the model cannot be loaded. {error}\nOn the hub: is the name right, is there a "
                          "network, and does HF_TOKEN hold a token if the model is gated?") from error
