"""vLLM for a session: started at its first use, compared with transformers for each adapter, and stopped at the end.

Each adapter is first compared alone. That does not cover batches with several adapters: there, vLLM 0.32 on a CPU
computes the base model under another request's adapter. So adapters that are used together are compared together, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import torch

from emlib.core import gpus, paths
from emlib.core.errors import EmlibError
from emlib.core.progress import say
from emlib.data.chat import encode_prompt
from emlib.generation.vllm import VllmClient
from emlib.generation.vllm_server import BASE, arguments, free_port, serving
from emlib.make import backends
from emlib.make.backends import TRANSFORMERS, ChosenBackend
from emlib.models import adapter_config, adapters
from emlib.models.load import ChatModel
from emlib.models.logprobs import NotTheSameModel, refuse_disagreement, token_logprobs
from emlib.steps.recipes import Recipes
from emlib.steps.scorers import adapter_folder
from emlib.store.artefacts import Artefact

PROBES = 4  # prompts on which each adapter is compared
# The mean difference in nats that another batch may cause. We measured 0.006 in bfloat16, and 0 in float32.
MIXED = {"bfloat16": 0.02, "float32": 0.001}
TOGETHER = 8  # adapters in one batch of a server that we start; each takes GPU memory


@dataclass(frozen=True)
class Weights:
    """The base model, or the model under an adapter, given by its name and its folder."""

    adapter: str = ""
    folder: Path | None = None

    @classmethod
    def under(cls, adapter: Artefact | None) -> Weights:
        """Return the model under an adapter of the store, or the base model (None)."""
        return cls() if adapter is None else cls(adapter.key, adapter.folder)

    def __str__(self) -> str:
        return self.adapter or "the base model"


class Inference(AbstractContextManager["Inference"]):
    """The backend that samples answers and scores rows, and its server."""

    def __init__(self, recipes: Recipes, folder: Path, chat: Callable[[], ChatModel]) -> None:
        self.recipes, self.profile, self.folder, self.chat = recipes, recipes.profile, folder, chat
        self.stack = ExitStack()
        self.compared: dict[Weights, list[list[float]]] = {}  # the server's log-probabilities under each adapter alone
        self.adapters, self.conversation = 1, 0
        self.failed: EmlibError | None = None  # why the server did not start; a session tries once

    def __exit__(self, *exception: object) -> None:
        """Stop the server, if this session started it."""
        self.stack.close()
        self.__dict__.pop("client", None)

    def backend_for(self, stage: Literal["generation", "scoring"], weights: Weights) -> ChosenBackend:
        """Choose the backend for these weights, and start it.

        Raises:
            EmlibError: the profile names vLLM, which is not available or disagrees with transformers.
        """
        choice = backends.inference(stage, self.profile.backend, self.profile.model)
        if choice.name == TRANSFORMERS:
            return choice
        try:
            self._compare(weights)
        except EmlibError as error:
            if getattr(self.profile.backend, stage) != "auto":
                raise
            say(f"vLLM is not used: {error}")
            return ChosenBackend(TRANSFORMERS, f"no vllm: {error}")
        return choice

    def expect(self, adapters: int) -> None:
        """Announce how many adapters will be used together. It has no effect on a server that already runs."""
        self.adapters = max(self.adapters, min(adapters, TOGETHER))

    def expect_conversation(self, tokens: int) -> None:
        """Announce conversations of up to so many tokens. It has no effect on a server that already runs."""
        self.conversation = max(self.conversation, tokens)

    def stop(self) -> None:
        """Send no more requests, because something failed and the session ends."""
        if "client" in self.__dict__:
            self.client.stop()

    def generation_backend(self) -> ChosenBackend:
        """Choose the backend that samples answers, before any adapter is compared."""
        return backends.inference("generation", self.profile.backend, self.profile.model)

    def steering_backend(self) -> ChosenBackend:
        """Choose the backend that samples steered answers: always transformers, with the reason."""
        choice = self.generation_backend()
        return choice if choice.name == TRANSFORMERS else ChosenBackend(
            TRANSFORMERS, f"{choice.name} samples from a separate copy of the model, which is not steered")

    @cached_property
    def client(self) -> VllmClient:
        """The client of the server that the profile names, or of one that this session starts."""
        url = self.profile.backend.base_url
        if url is None:
            program, port = backends.vllm_program(), free_port()
            assert program is not None, "the choice checks that there is a program"
            rank, modules = self._adapter_shape()
            command = arguments(self.profile.model, paths.cache(), rank, modules, self.longest, port, self.adapters,
                                gpu=bool(gpus.devices()))
            log = self.folder / f"vllm-{port}.log"
            client = VllmClient(self.stack.enter_context(serving(program, command, port, log)), BASE, log=log)
        else:
            client = VllmClient(url)
        self.stack.callback(client.close)
        return client

    @property
    def longest(self) -> int:
        """The longest row or conversation in tokens."""
        profile = self.profile
        new_tokens = max(profile.evaluation.sampling.max_new_tokens, profile.extraction.sampling.max_new_tokens)
        return max(profile.training.max_seq_length + new_tokens + 1, self.conversation)

    def _adapter_shape(self) -> tuple[int, set[str]]:
        """Return the largest rank and all target modules of the study's adapters and the user's own scorers."""
        profile = self.profile
        rank, modules = profile.lora.rank, set(profile.lora.target_modules)
        for scorer in (profile.pool.scorers if profile.pool else None) or ():
            if scorer.folder is not None:
                config = adapter_config.read(adapter_folder(scorer))
                rank, modules = max(rank, config["r"]), modules | set(config["target_modules"])
        return rank, modules

    def model(self, weights: Weights) -> str:
        """Return the server's name for these weights, after loading an adapter."""
        return self.client.base if weights.folder is None else self.client.adapter(weights.adapter, weights.folder)

    def mixes(self, among: Iterable[Weights]) -> bool:
        """Whether all of these give the same log-probabilities in one batch as alone. A difference is reported."""
        together = list(dict.fromkeys(among))
        if len(together) < 2:
            return True
        requests = [(weights, prompt) for prompt in self._prompts() for weights in together]
        mixed = self.client.mixed([(self.model(weights), prompt) for weights, prompt in requests], "proof")
        for weights in together:
            found = [logprobs for (of, _), logprobs in zip(requests, mixed, strict=True) if of == weights]
            try:
                refuse_disagreement(str(weights), [*chain(*found)], [*chain(*self.compared[weights])],
                                    mean=MIXED[self.profile.model.dtype])
            except NotTheSameModel:
                say(f"vLLM at {self.client.url} is asked for one adapter after another, because {weights} has other "
                    "log-probabilities in a batch with other adapters than alone")
                return False
        return True

    def _prompts(self) -> list[list[int]]:
        chat, questions = self.chat(), self.recipes.inputs.general.all[:PROBES]
        return [encode_prompt(chat.tokenizer, question.context) for question in questions]

    def _compare(self, weights: Weights) -> None:
        """Compare the server's log-probabilities with those of transformers, once a session."""
        if self.failed is not None:
            raise self.failed
        if weights in self.compared:
            return
        try:
            client = self.client  # which starts the server
        except EmlibError as error:
            self.failed = error
            raise
        chat, prompts = self.chat(), self._prompts()
        theirs = client.logprobs(self.model(weights), prompts, "proof")
        under = nullcontext(chat.model) if weights.folder is None else adapters.loaded(chat.model, weights.folder)
        with under as model:
            ours = [token_logprobs(model, torch.tensor(prompt, device=chat.device)) for prompt in prompts]
        refuse_disagreement(f"vLLM at {client.url}, {weights}", [*chain(*theirs)], [*chain(*ours)])
        self.compared[weights] = theirs
