"""Answers and log-probabilities from a vLLM server: one engine, many LoRA adapters, each under a name of its own.

Only token ids go to the server, so that prompts are those of the study to the last token. Three things of vLLM matter
here. Its server fills in what a model's generation settings say, so every setting of the sampling is sent. An adapter
loaded again under the same name is refused, or may meet the former one's cached prompts, so its name is the key of its
artefact and a word of this client's own: others may use the server, and one that was killed has left its adapters.
Log-probabilities of a prompt that is in the cache can be stale, so these requests have a salt each and share nothing.
It draws in a model of its own: what is steered by adding to activations cannot be had from it.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
from transformers import PreTrainedTokenizerBase

from emlib.config import Sampling
from emlib.core.errors import EmlibError
from emlib.core.progress import bar
from emlib.core.records import Answer
from emlib.core.seeds import derive
from emlib.data.chat import Encoded
from emlib.generation.sample import Drawn, Request

AT_ONCE = 256  # requests under way: as many as vLLM computes together by default
ALONE = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

One = TypeVar("One")
Other = TypeVar("Other")


class VllmClient:
    """A server at `base_url`. `base` is what it calls the model without an adapter; `log` is where it writes.

    Several threads may ask at once: together they have `at_once` requests under way, and the others wait their turn.
    """

    def __init__(self, base_url: str, base: str | None = None, at_once: int | None = None,
                 log: Path | None = None) -> None:
        at_once = at_once or AT_ONCE
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self.more = "" if log is None else f" Its log is {log}."
        self.http = httpx.Client(timeout=httpx.Timeout(3600, connect=30),
                                 limits=httpx.Limits(max_connections=at_once))
        self.pool = ThreadPoolExecutor(at_once, "vllm")
        self.salts, self.word, self.loaded = itertools.count(), secrets.token_hex(4), dict[str, str]()
        self.base = base or self._models()[0]

    def stop(self) -> None:
        """Send nothing more: whoever waits for an answer that was not asked for yet has a CancelledError."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Let go of the connections, and of the adapters on the server."""
        self.pool.shutdown(cancel_futures=True)
        with suppress(EmlibError):  # it may have gone before
            for name in self.loaded.values():
                self._post("/v1/unload_lora_adapter", {"lora_name": name})
        self.http.close()

    def adapter(self, name: str, folder: Path) -> str:
        """Have the server load an adapter, which must lie where the server sees it; what it is called there."""
        if name not in self.loaded:
            there = f"{name}-{self.word}"
            self._post("/v1/load_lora_adapter", {"lora_name": there, "lora_path": str(folder.resolve())})
            self.loaded[name] = there
        return self.loaded[name]

    def answers(self, model: str, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request],
                sampling: Sampling, seed: int, ends: set[int]) -> list[Answer]:
        """Return an answer to each request, in their order; each has a seed of its own, by question and sample."""
        drawn = self._all(lambda request: self._drawn(model, request, sampling, seed, ends), requests, "answers")
        return [_answer(tokenizer, request, one) for request, one in zip(requests, drawn, strict=True)]

    def logprobs(self, model: str, prompts: Sequence[Sequence[int]], what: str = "scores") -> list[list[float]]:
        """Return the log p of each prompt's second to last token given those before it, in nats."""
        return self.mixed([(model, prompt) for prompt in prompts], what)

    def mixed(self, asked: Sequence[tuple[str, Sequence[int]]], what: str) -> list[list[float]]:
        """Return the same for prompts under one model or another, which the engine has in one batch."""
        return self._all(lambda one: self._prompt(*one), asked, what)

    def nll(self, model: str, rows: Sequence[Encoded], what: str = "scores") -> list[float]:
        """Equation 4 for each row: the mean over its answer's tokens of -log p."""
        found = self.logprobs(model, [row.input_ids.tolist() for row in rows], what)
        return [-sum(said[-row.response_tokens:]) / row.response_tokens
                for said, row in zip(found, rows, strict=True)]

    def _drawn(self, model: str, request: Request, sampling: Sampling, seed: int, ends: set[int]) -> Drawn:
        choice = self._choice(ALONE | {
            "model": model, "prompt": list(request.prompt_ids), "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature, "top_p": sampling.top_p, "stop_token_ids": sorted(ends),
            "seed": derive(seed, "answer", request.question.id, request.sample), "return_token_ids": True})
        if choice.get("token_ids") is None:
            raise EmlibError(f"{self.url}: the server gives no token ids of its answers, as vLLM 0.33 does.")
        tokens = tuple(choice["token_ids"])
        stopped = choice["finish_reason"] == "stop"
        if stopped and (not tokens or tokens[-1] not in ends):  # an end token that the server keeps to itself
            tokens += (min(ends),)
        return Drawn(tokens, (), stopped)

    def _prompt(self, model: str, prompt: Sequence[int]) -> list[float]:
        choice = self._choice(ALONE | {
            "model": model, "prompt": list(prompt), "max_tokens": 1, "temperature": 1.0, "top_p": 1.0,
            "prompt_logprobs": 0, "cache_salt": f"emlib-{next(self.salts)}"})
        said = choice.get("prompt_logprobs")
        if said is None or len(said) != len(prompt):
            raise EmlibError(f"{self.url}: asked for the log-probabilities of {len(prompt)} tokens, the server gave "
                             f"{0 if said is None else len(said)}. Set backend.scoring to 'transformers'.")
        return [float(place[str(token)]["logprob"]) for token, place in zip(prompt[1:], said[1:], strict=True)]

    def _choice(self, asked: dict[str, Any]) -> dict[str, Any]:
        return dict(self._post("/v1/completions", asked).json()["choices"][0])

    def _models(self) -> list[str]:
        try:
            told = self.http.get(f"{self.url}/v1/models")
            told.raise_for_status()
        except httpx.HTTPError as error:
            raise EmlibError(f"{self.url}: no vLLM server answers there ({error}). Start it, or leave backend.base_url "
                             "out, and emlib starts one.") from error
        return [one["id"] for one in told.json()["data"]]

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        try:
            told = self.http.post(f"{self.url}{path}", json=body)
        except httpx.HTTPError as error:
            raise EmlibError(f"{self.url}: the vLLM server went away ({error}). What it had answered is kept; start it "
                             f"again, and run the same command.{self.more}") from error
        if told.status_code != 200:
            raise EmlibError(f"{self.url}{path}: the vLLM server says {told.status_code}: {told.text[:500]}{self.more}")
        return told

    def _all(self, ask: Callable[[One], Other], things: Iterable[One], what: str) -> list[Other]:
        """Everything at once, as far as the server takes it; the first error ends the others."""
        asked = [self.pool.submit(ask, one) for one in things]
        try:
            return [one.result() for one in bar(asked, what, "request", total=len(asked))]
        except BaseException:
            for one in asked:
                one.cancel()
            raise


def _answer(tokenizer: PreTrainedTokenizerBase, request: Request, drawn: Drawn) -> Answer:
    return Answer(request.question.id, request.sample, drawn.text(tokenizer), "stop" if drawn.stopped else "length",
                  len(drawn.said))
