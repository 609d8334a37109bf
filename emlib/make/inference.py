"""vLLM for a session: started when it is first wanted, proved against transformers for each adapter, ended with it.

An adapter is proved alone. That says nothing of a batch in which there are several: vLLM 0.32 on a CPU computes the
base under somebody's adapter there. So those that are to be asked together are proved together, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from emlib.core import gpus, paths
from emlib.core.errors import EmlibError
from emlib.core.progress import say
from emlib.data.chat import encode_prompt
from emlib.generation.vllm import VllmClient
from emlib.generation.vllm_server import BASE, arguments, free_port, serving
from emlib.make import backends
from emlib.make.backends import PLAIN, Choice
from emlib.models import adapters
from emlib.models.agreement import NotTheSameModel, refuse_disagreement
from emlib.models.logprobs import token_logprobs
from emlib.steps.recipes import adapter_folder

if TYPE_CHECKING:
    from emlib.make.session import Session

PROBES = 4  # prompts that each adapter is proved on
# Nats in the mean: what another batch may change. In bfloat16 it was 0.006, and in float32 nothing.
MIXED = {"bfloat16": 0.02, "float32": 0.001}
TOGETHER = 8  # adapters that a server of our own may have in one batch: each has room in the GPU's memory of its own


class Inference(AbstractContextManager["Inference"]):
    """Says what draws answers or scores rows under an adapter, and has it ready."""

    def __init__(self, session: Session) -> None:
        self.session, self.stack = session, ExitStack()
        self.proved: dict[str, list[list[float]]] = {}  # what the server said under each adapter alone
        self.adapters = 1
        self.failed: EmlibError | None = None  # what kept the server from starting: tried once a sitting

    def __exit__(self, *exception: object) -> None:
        """End the server, if it is our own."""
        self.stack.close()
        self.__dict__.pop("client", None)

    def under(self, stage: Literal["generation", "scoring"], name: str | None, folder: Path | None) -> Choice:
        """What works under the adapter of `folder`, which is called `name`; None for the base.

        Raises:
            EmlibError: vLLM was named, and cannot be had, or is not the same model.
        """
        profile = self.session.profile
        choice = backends.drawing(stage, profile.backend, profile.model)
        if choice.name == PLAIN:
            return choice
        try:
            self._prove(name, folder)
        except EmlibError as error:
            if getattr(profile.backend, stage) != "auto":
                raise
            say(f"vLLM is not used: {error}")
            return Choice(PLAIN, f"no vllm: {error}")
        return choice

    def expect(self, adapters: int) -> None:
        """So many adapters will be asked at once. A server that runs already computes as many together as it could."""
        self.adapters = max(self.adapters, min(adapters, TOGETHER))

    def stop(self) -> None:
        """Send no more requests: something failed, and the sitting ends."""
        if "client" in self.__dict__:
            self.client.stop()

    def drawing(self) -> Choice:
        """What is to draw answers, before any adapter is proved."""
        profile = self.session.profile
        return backends.drawing("generation", profile.backend, profile.model)

    def steered(self) -> Choice:
        """What answers under a vector that is added to activations: transformers, whatever the profile says."""
        choice = self.drawing()
        return choice if choice.name == PLAIN else Choice(
            PLAIN, f"{choice.name} draws in a model of its own, which is not steered")

    @cached_property
    def client(self) -> VllmClient:
        """The server that the profile names, or one of our own."""
        profile = self.session.profile
        url = profile.backend.base_url
        if url is None:
            program, port = backends.vllm_program(), free_port()
            assert program is not None, "the choice looked for it"
            rank, modules = self._shape()
            told = arguments(profile.model, paths.cache(), rank, modules, self.longest, port, self.adapters,
                             gpu=bool(gpus.devices()))
            log = self.session.folder / f"vllm-{port}.log"
            client = VllmClient(self.stack.enter_context(serving(program, told, port, log)), BASE, log=log)
        else:
            client = VllmClient(url)
        self.stack.callback(client.close)
        return client

    @property
    def longest(self) -> int:
        """Tokens of the longest row or conversation that may be asked about."""
        profile = self.session.profile
        drawn = [profile.evaluation.sampling.max_new_tokens, profile.extraction.sampling.max_new_tokens]
        return profile.training.max_seq_length + max(drawn) + 1

    def _shape(self) -> tuple[int, set[str]]:
        """The largest rank, and the layers, of the adapters that the study trains and of one's own scorers."""
        profile = self.session.profile
        rank, modules = profile.lora.rank, set(profile.lora.target_modules)
        for scorer in (profile.pool.scorers if profile.pool else None) or ():
            if scorer.folder is not None:
                said = json.loads((adapter_folder(scorer) / "adapter_config.json").read_text(encoding="utf-8"))
                rank, modules = max(rank, said["r"]), modules | set(said["target_modules"])
        return rank, modules

    def model(self, name: str | None, folder: Path | None) -> str:
        """What the server calls the model under an adapter, which it has loaded then."""
        return self.client.base if name is None or folder is None else self.client.adapter(name, folder)

    def mixes(self, named: Iterable[tuple[str | None, Path | None]]) -> bool:
        """Whether these, each proved, come out of one batch as they come out alone; otherwise it is told."""
        names = dict(named)
        if len(names) < 2:
            return True
        prompts, dtype = self._prompts(), self.session.profile.model.dtype
        asked = [(name, prompt) for prompt in prompts for name in names]
        said = self.client.mixed([(self.model(name, names[name]), prompt) for name, prompt in asked], "proof")
        try:
            for name in names:
                found = [one for (of, _), one in zip(asked, said, strict=True) if of == name]
                refuse_disagreement(str(name), [*chain(*found)], [*chain(*self.proved[name or ""])], mean=MIXED[dtype])
        except NotTheSameModel:
            say(f"vLLM at {self.client.url} is asked for one adapter after another: in a batch with others, "
                f"{name or 'the base model'} came out otherwise than alone")
            return False
        return True

    def _prompts(self) -> list[list[int]]:
        chat, questions = self.session.chat, self.session.recipes.general.all[:PROBES]
        return [encode_prompt(chat.tokenizer, question.context) for question in questions]

    def _prove(self, name: str | None, folder: Path | None) -> None:
        if self.failed is not None:
            raise self.failed
        if (name or "") in self.proved:
            return
        try:
            self.client  # noqa: B018  starts it
        except EmlibError as error:
            self.failed = error
            raise
        chat, prompts = self.session.chat, self._prompts()
        theirs = self.client.logprobs(self.model(name, folder), prompts, "proof")
        with ExitStack() as stack:
            model = chat.model if folder is None else stack.enter_context(adapters.loaded(chat.model, folder))
            ours = [token_logprobs(model, torch.tensor(prompt, device=chat.device)) for prompt in prompts]
        refuse_disagreement(f"vLLM at {self.client.url}, {name or 'the base model'}",
                     [*chain(*theirs)], [*chain(*ours)])
        self.proved[name or ""] = theirs
