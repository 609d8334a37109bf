"""Reads the configuration of a saved adapter, and refuses kinds that change the base model beside or after them.

An adapter is switched on one base model, which also gives the losses of the aligned model. So it must leave the base
model's own weights alone, and act on every token. PEFT attaches other kinds without a word: PiSSA and OLoRA subtract
their start from the base weights, `bias` overwrites biases, `modules_to_save` replaces layers for good. Its file may
also hold layers of the base model (`save_embedding_layers`), which PEFT loads over the base model's for good.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from emlib.core.errors import ProfileError, StoreError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OWN = re.compile(r"\.(lora_(embedding_)?[AB]|lora_magnitude_vector|trainable_tokens_delta)(\.|$)")  # in weights' names
# These may have any value: they say where the LoRA layers are and how their product is computed, or nothing about them.
FREE = frozenset({
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "target_modules",
    "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "trainable_token_indices", "eva_config", "task_type", "auto_mapping", "inference_mode",
    "peft_version", "base_model_name_or_path", "revision", "megatron_core", "qalora_group_size"})
LEAVE_THE_BASE = (True, False, "gaussian", "orthogonal", "eva", "mica")
ALLOWED: Mapping[str, Callable[[Any], bool]] = {
    "peft_type": lambda value: value == "LORA", "bias": lambda value: value == "none",
    "init_lora_weights": lambda value: value in LEAVE_THE_BASE}  # any other option: not set
WAYS_OUT = {
    "init_lora_weights": "It changes the base model's weights. Save the adapter again as plain LoRA, with PEFT's "
                         "save_pretrained(..., path_initial_model_for_weight_conversion=FOLDER_OF_ITS_START)",
    "bias": "It overwrites the base model's biases. Train it with bias 'none'",
    "modules_to_save": "It replaces layers of the base model. Train it without modules_to_save",
    "alora_invocation_tokens": "It acts only behind these tokens, which the study's rows do not have. Train it as "
                               "plain LoRA"}


def read(folder: Path) -> dict[str, Any]:
    """Return the configuration of the saved adapter in `folder`.

    Raises:
        StoreError: there is none, or no weights beside it.
        ProfileError: it cannot be read, or is no LoRA adapter that leaves the base model's weights alone.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise StoreError(f"{folder}: there is no adapter ({name} is missing). Copy it there, or correct the path.")
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProfileError(f"{folder / CONFIG} is not JSON ({error}). Copy it again.") from error
    if not isinstance(found, dict) or not isinstance(found.get("base_model_name_or_path"), str):
        raise ProfileError(f"{folder / CONFIG} does not name the adapter's base model. Write its name as "
                           "base_model_name_or_path.")
    stated = {"peft_type": None} | found
    unsuited = [name for name, value in stated.items() if name not in FREE and not ALLOWED.get(name, _unset)(value)]
    if unsuited:
        first = unsuited[0]
        way_out = WAYS_OUT.get(first, "Train a LoRA adapter without it")
        raise ProfileError(
            f"{folder}: {CONFIG} has {first} {json.dumps(stated[first])[:100]}. A study attaches only LoRA adapters "
            f"that leave the base model's own weights alone and act on every token. {way_out}.")
    _refuse_layers_of_the_base(folder)
    return found


def _refuse_layers_of_the_base(folder: Path) -> None:
    try:
        with safe_open(folder / WEIGHTS, framework="np") as stored:
            others = sorted(name for name in stored.keys() if not OWN.search(name))  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise ProfileError(f"{folder}: the adapter's weights are damaged or truncated ({error}). Copy them again."
                           ) from error
    if others:
        raise ProfileError(
            f"{folder}: {WEIGHTS} has {len(others)} weights besides the adapter's own, such as {others[0]}. PEFT would "
            "load them over the base model's, which a study needs as they are. If the training left them as they "
            "were, save the adapter again with PEFT's save_pretrained(..., save_embedding_layers=False); otherwise "
            "train it without changing layers of the base model (its vocabulary, say).")


def _unset(value: Any) -> bool:
    return not value
