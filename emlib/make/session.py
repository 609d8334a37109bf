"""What makers share while they work: the loaded model, the vLLM server, the store, and the way to what they need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emlib.core import paths
from emlib.core.step import Step
from emlib.judging import local
from emlib.make.inference import Inference
from emlib.make.makers import MAKERS
from emlib.models import adapters
from emlib.models.load import ChatModel, load
from emlib.steering import extraction
from emlib.steps.recipes import Recipes
from emlib.store.artefacts import Artefact, Store


class Session(AbstractContextManager["Session"]):
    """Holds one base model for all that is made meanwhile; adapters are put on and taken off it.

    `folder` is the study's folder of results, where a server leaves its log.
    """

    def __init__(self, recipes: Recipes, store: Store, folder: Path, budget: str) -> None:
        self.recipes, self.profile, self.store = recipes, recipes.profile, store
        self.folder, self.budget = folder, budget

    def __exit__(self, *exception: object) -> None:
        """Let the model go, so that a notebook's next study finds the memory free, and end a server of our own."""
        self.inference.__exit__(*exception)
        local.loaded.cache_clear()
        self.release_model()

    def release_model(self) -> None:
        """Let the base model go; it is loaded again when it is next needed."""
        self.__dict__.pop("chat", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def chat(self) -> ChatModel:
        """The base model, loaded when it is first needed."""
        return load(self.profile.model, paths.cache())

    @cached_property
    def inference(self) -> Inference:
        """Says which backend samples answers and scores rows, and has it ready."""
        return Inference(self)

    def need(self, step: Step) -> Artefact:
        """The artefact of a step, made with all that it needs if it is not there."""
        return self.store.get(step, lambda folder: MAKERS[type(step)](step, self, folder))

    def folder_of(self, step: Step) -> Path:
        """The folder of a step's artefact, made if it is not there, after every file in it was checked."""
        return self.need(step).checked()

    def vector(self, step: Step, layer: int) -> Tensor:
        """One layer's persona vector, on the model's device."""
        return extraction.load(self.folder_of(step)).at(layer).to(self.chat.device)

    @contextmanager
    def model_under(self, adapter: Step | Artefact | None) -> Iterator[nn.Module]:
        """The base model under an adapter, which is made if it is not there; None for the base model as it is."""
        if adapter is None:
            yield self.chat.model
            return
        found = self.need(adapter) if isinstance(adapter, Step) else adapter
        with adapters.loaded(self.chat.model, found.checked()) as model:
            yield model

    @property
    def facts(self) -> dict[str, Any]:
        """What an artefact's manifest says of where it was made."""
        return {"device": str(self.chat.device)}
