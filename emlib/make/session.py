"""What makers share in a session: the loaded model, the vLLM server, the store, and the artefacts they need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, is_dataclass
from functools import cached_property, singledispatch
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from emlib.config import HubModel
from emlib.core import paths
from emlib.core.background import SharedClock
from emlib.core.errors import SourceError
from emlib.core.records import Example
from emlib.core.schema import Strict
from emlib.core.step import Step
from emlib.data.lazy import Rows
from emlib.judging import local
from emlib.make.inference import Inference
from emlib.models import adapters, hub
from emlib.models.context import refuse_longer_rows
from emlib.models.load import ChatModel, load
from emlib.steering import extraction
from emlib.steps.added import AddedRows
from emlib.steps.monitor import MonitorInputs
from emlib.steps.recipes import Recipes
from emlib.steps.specs import Model
from emlib.steps.vectors import PersonaVectors
from emlib.store.artefacts import Artefact, Facts, Store


@singledispatch
def maker(step: Step, session: Session, folder: Path) -> Facts:
    """Make a step's artefact in `folder`, and return its facts: each kind of step has a maker, registered here."""
    raise NotImplementedError(f"{type(step).__name__}: a module of emlib.make registers the maker of each kind of step")


def register_makers() -> None:
    """Import all modules beside this one: each registers its makers."""
    for module in iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")


def _hub_models(value: Any, *, within: bool = False) -> set[HubModel]:
    """Return the hub's models that a step names itself, not by its inputs: the study's, its judges' and defenses'."""
    if isinstance(value, HubModel):
        return {value}
    if isinstance(value, Model):
        return _hub_models(value.spec)
    if isinstance(value, Strict):
        parts = [getattr(value, name) for name in type(value).model_fields]
    elif is_dataclass(value) and not (within and isinstance(value, Step)):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        parts = list(value) if isinstance(value, tuple | list) else []
    return set[HubModel]().union(*(_hub_models(part, within=True) for part in parts))


class Session(AbstractContextManager["Session"]):
    """One base model for everything that is made, with adapters loaded and removed as needed."""

    kept: ClassVar[Session | None] = None  # the one that stays open between what a notebook does by hand

    def __init__(self, recipes: Recipes, store: Store, folder: Path, budget: str) -> None:
        """Take the study's folder of results, where a server writes its log, and the name of its budget for judges."""
        register_makers()
        self.recipes, self.profile, self.store = recipes, recipes.profile, store
        self.folder, self.budget = folder, budget
        self.sampling_clock = SharedClock()  # of sets of answers: a server samples several at once
        self._said: set[str] = set()

    def once(self, text: str) -> str:
        """Return an explanation the first time that the session gives it, and an empty text from then on."""
        new = text not in self._said
        self._said.add(text)
        return text if new else ""

    def __exit__(self, *exception: object) -> None:
        """Release the model's memory for a notebook's next study, and stop the server that the session started."""
        self.inference.__exit__(*exception)
        local.loaded.cache_clear()
        self.release_model()

    @classmethod
    def close_kept(cls) -> None:
        """Close the session that stays open, if there is one."""
        if cls.kept is not None:
            kept, cls.kept = cls.kept, None
            kept.__exit__(None, None, None)

    def release_model(self) -> None:
        """Release the base model's memory. The model is loaded again at its next use."""
        self.__dict__.pop("chat", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def chat(self) -> ChatModel:
        """The base model, loaded at its first use.

        Raises:
            SourceError: its files were changed after the keys of the study's steps were computed.
            ProfileError: rows may be longer than its context.
        """
        chat = load(self.profile.model, paths.cache())
        if self.profile.model.identity != self.recipes.model.identity:  # which the keys have
            raise SourceError(f"{chat.name}: the model's files were changed after the study was opened, and keys have "
                              "the former ones. Nothing is made with the model. Open the study again (restart the "
                              "notebook, or run the same command); or undo the change.")
        trainings = {"training": self.profile.training, **(
            {"grpo.training": self.profile.grpo.training} if self.profile.grpo is not None else {})}
        refuse_longer_rows(chat.name, chat.model, {
            f"{name}.max_seq_length": one.max_seq_length for name, one in trainings.items()})
        return chat

    @cached_property
    def inference(self) -> Inference:
        """The backend that samples answers and scores rows."""
        return Inference(self.recipes, self.folder, lambda: self.chat)

    def need(self, step: Step) -> Artefact:
        """Return the artefact of a step. Make it and its inputs if they are missing.

        Raises:
            EmlibError: persona vectors are of fewer pairs than the profile's `min_pairs`, or a monitor has no answer.
        """
        for other in step.made_with:
            if self.store.find(step) is None:
                self.need(other)  # before this step's lock is taken, because that maker takes it
        found = self.store.get(step, lambda folder: self._made(step, folder))
        if isinstance(step, PersonaVectors | MonitorInputs):
            step.check(found.facts)
        return found

    def _made(self, step: Step, folder: Path) -> Facts:
        hub.hold(_hub_models(step), paths.cache(), self.store.root)
        return maker(step, self, folder)

    def timer(self, step: Step) -> Callable[[], float]:
        """Make a step's missing inputs, then start a clock. Return the function that gives the seconds since then."""
        for needed in step.inputs:
            self.need(needed)
        started = time.perf_counter()
        return lambda: round(time.perf_counter() - started, 3)

    def read(self, step: Step) -> list[Any]:
        """Return the records of a step's artefact, which is made if it is missing."""
        return self.need(step).records(step)

    def examples(self, rows: Rows | AddedRows) -> Sequence[Example]:
        """Return rows of a data set, or of the pool, which are chosen now if they are not yet."""
        return rows.examples if isinstance(rows, Rows) else [row.example for row in self.read(rows)]

    def folder_of(self, step: Step) -> Path:
        """Return the folder of a step's artefact, made if missing, after comparing every file with its digest."""
        return self.need(step).folder

    def vector(self, step: Step, layer: int) -> Tensor:
        """Return one layer's persona vector, on the model's device."""
        return extraction.load(self.folder_of(step)).at(layer).to(self.chat.device)

    @contextmanager
    def model_under(self, adapter: Step | Artefact | None) -> Iterator[nn.Module]:
        """Give the base model under an adapter, which is made if missing, or the base model alone (None)."""
        if adapter is None:
            yield self.chat.model
            return
        found = self.need(adapter) if isinstance(adapter, Step) else adapter
        with adapters.loaded(self.chat.model, found.folder) as model:
            yield model

    @property
    def facts(self) -> dict[str, Any]:
        """The facts on this machine that an artefact's manifest records."""
        return {"device": str(self.chat.device)}
