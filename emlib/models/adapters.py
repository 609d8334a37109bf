"""LoRA adapters by PEFT: put on a base model for a while, saved in PEFT's own format, taken off without a trace."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from emlib.config import Lora
from emlib.core.errors import ProfileError, StoreError
from emlib.core.seeds import derive


@contextmanager
def new_lora(base: PreTrainedModel, settings: Lora, seed: int) -> Iterator[PeftModel]:
    """`base` with a fresh adapter (rsLoRA as in Table 6), its start fixed by `seed`; off again at the end.

    The adapter starts as the identity: B is zero. Its weights are float32 also where the base is bfloat16.
    """
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, use_rslora=settings.rslora,
        target_modules=list(settings.target_modules), bias="none", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "lora"))
        model = get_peft_model(base, config)
    with _taken_off(model, base):
        found = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, LoraLayer)}
        missing = sorted(set(settings.target_modules) - found)
        if missing:  # PEFT is silent as long as it finds one of them
            raise ProfileError(f"lora.target_modules names {', '.join(missing)}, which this model does not have. "
                               f"It has {', '.join(sorted(found))}.")
        yield model


@contextmanager
def loaded(base: PreTrainedModel, folder: Path) -> Iterator[PeftModel]:
    """`base` under the saved adapter of `folder`, frozen, in evaluation mode; off again at the end."""
    if not (folder / "adapter_config.json").is_file():
        raise StoreError(f"{folder}: there is no adapter (adapter_config.json is missing).")
    model = PeftModel.from_pretrained(base, str(folder))
    with _taken_off(model, base):
        yield model.eval()


Under = Callable[[str | None], AbstractContextManager[nn.Module]]


@contextmanager
def switchable(base: PreTrainedModel, name: str, folders: Mapping[str, Path]) -> Iterator[Under]:
    """`base` with several saved adapters beside each other, none merged into it; all off again at the end.

    What is yielded takes the name of one of them, or None for the base as it is, and gives the model for as long as its
    `with` block lasts.

    Args:
        base: the model, loaded once.
        name: what the base is called in tables, and in the configuration of its adapters.
        folders: where each adapter lies; at least one.

    Raises:
        StoreError: a folder holds no adapter.
        ProfileError: an adapter is one of another base model.
    """
    with _collected(base, name, folders) as model:

        @contextmanager
        def under(adapter: str | None) -> Iterator[nn.Module]:
            if adapter is not None:
                model.set_adapter(adapter, inference_mode=True)
            with adapter_off(model) if adapter is None else nullcontext():
                yield model

        yield under


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The reference model: the same weights without the adapter, in evaluation mode; as it was at the end.

    Evaluation mode keeps gradient checkpointing out of a pass that has no gradient. A backward pass does not belong in
    here: it would go through the model without its adapter.
    """
    assert isinstance(model, PeftModel), "only a model with an adapter has a reference under it"
    training = model.training
    with model.disable_adapter():
        try:
            model.eval()
            yield
        finally:
            model.train(training)


def save(model: PeftModel, folder: Path, base_name: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` into `folder`.

    `base_name` is what the configuration calls the base model, instead of a path that holds on one machine only. The
    layers' names are sorted, because PEFT holds them as a set, whose order differs from process to process.
    """
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig), "adapters of other kinds are not made here"
    config.base_model_name_or_path = base_name
    config.target_modules = sorted(config.target_modules or ())
    model.save_pretrained(str(folder), save_embedding_layers=False)  # LoRA leaves them alone


@contextmanager
def _collected(base: PreTrainedModel, name: str, folders: Mapping[str, Path]) -> Iterator[PeftModel]:
    for folder in folders.values():
        _refuse_another_base(folder, name)
    (first, place), *rest = folders.items()
    with _left_clean(base), _told(place, name):
        model = PeftModel.from_pretrained(base, str(place), adapter_name=first)
    with _taken_off(model, base):
        for other, place in rest:
            with _told(place, name):
                model.load_adapter(str(place), adapter_name=other)
        for adapter, place in folders.items():
            _refuse_half_fitting(model, adapter, place, name)
        yield model.eval()


def _refuse_another_base(folder: Path, name: str) -> None:
    """By the name in the adapter's configuration; of `owner/model` the last part decides, as mirrors keep that."""
    if not (folder / "adapter_config.json").is_file():
        raise StoreError(f"{folder}: there is no adapter (adapter_config.json is missing).")
    said = str(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"])
    if Path(said).name != Path(name).name:
        raise ProfileError(f"{folder}: this adapter belongs to '{said}', and the profile's model is '{name}'. If these "
                           "are one model under two names, write the latter into its adapter_config.json.")


def _refuse_half_fitting(model: PeftModel, adapter: str, folder: Path, name: str) -> None:
    """PEFT passes over weights that it has no place for, and leaves others at their random start."""
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
        apart = set(stored.keys()) ^ set(get_peft_model_state_dict(
            model, adapter_name=adapter, save_embedding_layers=False))
    if apart:
        raise ProfileError(f"{folder}: this adapter does not fit '{name}': {len(apart)} weights are in one of the two "
                           f"and have no place in the other, such as {min(apart)}.")


@contextmanager
def _told(folder: Path, name: str) -> Iterator[None]:
    """What PEFT says of an adapter of another shape, in words."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Found missing adapter keys")  # an error below, and not a warning
            yield
    except (RuntimeError, ValueError) as error:
        raise ProfileError(f"{folder}: this adapter does not fit '{name}'. {str(error)[:300]}") from error


@contextmanager
def _left_clean(base: PreTrainedModel) -> Iterator[None]:
    """Where PEFT fails half way, its layers stay in the model; take them out again."""
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
def _taken_off(model: PeftModel, base: PreTrainedModel) -> Iterator[None]:
    training = base.training
    try:
        yield
    finally:
        model.unload()  # undoes the replaced layers in place: `base` is what it was
        base.train(training).requires_grad_(False)
        _forget_peft(base)


def _forget_peft(base: PreTrainedModel) -> None:
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        base.__dict__.pop(leftover, None)
