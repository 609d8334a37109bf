"""LoRA adapters by PEFT: attached to a base model temporarily, saved in PEFT's format, and removed completely."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from emlib.config import Lora
from emlib.core.errors import ProfileError
from emlib.core.seeds import derive
from emlib.models import adapter_config


@contextmanager
def new_lora(base: PreTrainedModel, settings: Lora, seed: int, start: Path | None = None) -> Iterator[PeftModel]:
    """Attach a new adapter (rsLoRA as in Table 6) to `base`, initialised by `seed`; remove it at the end.

    The adapter starts as the identity: B is zero. Or it starts with the weights of the saved adapter in the folder
    `start`. Its weights are float32 even if the base is bfloat16.

    Raises:
        ProfileError: the model lacks one of the target modules, or the saved adapter does not fit.
    """
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, use_rslora=settings.rslora,
        target_modules=list(settings.target_modules), bias="none", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "lora"))
        model = get_peft_model(base, config)
    with _removed_at_end(model, base):
        found = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, LoraLayer)}
        missing = sorted(set(settings.target_modules) - found)
        if missing:  # PEFT does not report this if it finds at least one of them
            raise ProfileError(f"lora.target_modules names {', '.join(missing)}, which this model does not have. "
                               f"It has {', '.join(sorted(found))}.")
        if start is not None:
            begin_with(model, start, str(base.name_or_path))
        yield model


def begin_with(model: PeftModel, folder: Path, name: str) -> None:
    """Give the adapter of `model` the weights of the saved one in `folder`; `name` is the base model's in messages."""
    with _load_errors(folder, name):
        adapter_config.read(folder)
        _refuse_other_weights(model, "default", folder, name)
        set_peft_model_state_dict(model, load_file(folder / adapter_config.WEIGHTS))


@contextmanager
def loaded(base: PreTrainedModel, folder: Path) -> Iterator[PeftModel]:
    """Attach the saved adapter of `folder` to `base`, frozen, in evaluation mode; remove it at the end."""
    adapter_config.read(folder)
    model = PeftModel.from_pretrained(base, str(folder))
    with _removed_at_end(model, base):
        yield model.eval()


Under = Callable[[str | None], AbstractContextManager[nn.Module]]


@contextmanager
def switchable(base: PreTrainedModel, name: str, folders: Mapping[str, Path]) -> Iterator[Under]:
    """Attach several saved adapters to `base` without merging them; remove all at the end.

    Yields a function that takes the name of an adapter, or None for the base model, and returns a context in which the
    model has that adapter.

    Args:
        base: the model, loaded once.
        name: the name of the base model in tables and in the configuration of its adapters.
        folders: the folder of each adapter; at least one.

    Raises:
        StoreError: a folder has no adapter.
        ProfileError: an adapter belongs to another base model, or is of a kind that changes it.
    """
    with _all_attached(base, name, folders) as model:

        @contextmanager
        def under(adapter: str | None) -> Iterator[nn.Module]:
            if adapter is not None:
                model.set_adapter(adapter, inference_mode=True)
            with adapter_off(model) if adapter is None else nullcontext():
                yield model

        yield under


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Turn the model into the reference model: without the adapter, in evaluation mode; restore it at the end.

    Evaluation mode turns off gradient checkpointing, because reference passes have no gradient. Run no backward pass in
    this context: it would go through the model without its adapter.
    """
    assert isinstance(model, PeftModel), "only a model with an adapter has a reference model"
    training = model.training
    with model.disable_adapter():
        try:
            model.eval()
            yield
        finally:
            model.train(training)


@torch.no_grad()
def merged(layer: nn.Module) -> Tensor:
    """Return a layer's weights with its active LoRA adapters, W + s B A, as a new tensor; without one, W itself.

    W is not written: in bfloat16 the change added and subtracted again does not give W back. The sum is rounded once.
    """
    part: Any = layer
    weight: Tensor = part.base_layer.weight if isinstance(layer, LoraLayer) else part.weight
    if not isinstance(layer, LoraLayer) or layer.disable_adapters:
        return weight
    total = weight.float()
    for name in layer.active_adapters:
        if name in layer.lora_A:
            total = total + part.get_delta_weight(name).float()
    return total.to(weight.dtype)


def merged_parameters(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the base model's parameters by their names without an adapter, with the adapter's change in them.

    Each changed one is a new tensor, made when it is asked for.
    """
    base = model.get_base_model()
    for name, parameter in base.named_parameters():
        layer, is_weight, _ = name.partition(".base_layer.weight")
        if is_weight:
            yield f"{layer}.weight", merged(base.get_submodule(layer)).data
        elif model.prefix not in name:
            yield name.replace(".base_layer", ""), parameter.data


def save(model: PeftModel, folder: Path, base_name: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` into `folder`.

    `base_name` is the base model's name in the configuration, instead of a path that is valid on one machine only. The
    layers' names are sorted, because PEFT has them as a set, whose order differs between processes.
    """
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig), "emlib trains LoRA adapters only"
    config.base_model_name_or_path = base_name
    config.target_modules = sorted(config.target_modules or ())
    model.save_pretrained(str(folder), save_embedding_layers=False)  # LoRA does not change them


@contextmanager
def _all_attached(base: PreTrainedModel, name: str, folders: Mapping[str, Path]) -> Iterator[PeftModel]:
    for folder in folders.values():
        _refuse_another_base(folder, name)
    (first, place), *rest = folders.items()
    with _cleaned_after_error(base), _load_errors(place, name):
        model = PeftModel.from_pretrained(base, str(place), adapter_name=first)
    with _removed_at_end(model, base):
        for other, place in rest:
            with _load_errors(place, name):
                model.load_adapter(str(place), adapter_name=other)
        for adapter, place in folders.items():
            _refuse_other_weights(model, adapter, place, name)
        yield model.eval()


def _refuse_another_base(folder: Path, name: str) -> None:
    """Compare the base model's name in the adapter's configuration; of `owner/model` only the last part counts."""
    stated = adapter_config.read(folder)["base_model_name_or_path"]
    if Path(stated).name != Path(name).name:
        raise ProfileError(f"{folder}: this adapter belongs to '{stated}', but the profile's model is '{name}'. If "
                           "these are one model under two names, write the latter into its adapter_config.json.")


def _refuse_other_weights(model: PeftModel, adapter: str, folder: Path, name: str) -> None:
    """Refuse unmatched weights: PEFT ignores those that the model lacks, and leaves missing ones random."""
    with safe_open(folder / adapter_config.WEIGHTS, framework="pt") as stored:
        unmatched = set(stored.keys()) ^ set(get_peft_model_state_dict(
            model, adapter_name=adapter, save_embedding_layers=False))
    if unmatched:
        raise ProfileError(f"{folder}: this adapter does not fit '{name}': {len(unmatched)} weights are only in one of "
                           f"the two, such as {min(unmatched)}.")


@contextmanager
def _load_errors(folder: Path, name: str) -> Iterator[None]:
    """Turn errors about an adapter of another shape into a ProfileError."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Found missing adapter keys")  # `_refuse_other_weights` raises instead
            yield
    except (RuntimeError, ValueError) as error:
        raise ProfileError(f"{folder}: this adapter does not fit '{name}'. {str(error)[:300]}") from error


@contextmanager
def _cleaned_after_error(base: PreTrainedModel) -> Iterator[None]:
    """Remove PEFT's layers from the model if PEFT fails half way."""
    try:
        yield
    except ProfileError:
        for name, part in list(base.named_modules()):
            if isinstance(part, LoraLayer):
                parent, _, child = name.rpartition(".")
                setattr(base.get_submodule(parent), child, part.get_base_layer())
        _forget_peft(base)
        raise


@contextmanager
def _removed_at_end(model: PeftModel, base: PreTrainedModel) -> Iterator[None]:
    training = base.training
    try:
        yield
    finally:
        model.unload()  # restores the replaced layers in place: `base` is unchanged
        base.train(training).requires_grad_(False)
        _forget_peft(base)


def _forget_peft(base: PreTrainedModel) -> None:
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        base.__dict__.pop(leftover, None)
