"""Reads the configuration of a saved adapter, and refuses kinds that change the base model beside or after them.

An adapter is switched on one base model, which also gives the losses of the aligned model. So it must leave the base
model's own weights alone, and act on every token. PEFT attaches other kinds without a word: PiSSA and OLoRA subtract
their start from the base weights, `bias` overwrites biases, `modules_to_save` replaces layers for good.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emlib.core.errors import ProfileError, StoreError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
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
        StoreError: there is none.
        ProfileError: it cannot be read, or is no LoRA adapter that leaves the base model's weights alone.
    """
    if not (folder / CONFIG).is_file():
        raise StoreError(f"{folder}: there is no adapter ({CONFIG} is missing).")
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
    return found


def _unset(value: Any) -> bool:
    return not value
