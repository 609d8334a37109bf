"""Answers and log-probabilities from a vLLM server: one engine, many LoRA adapters, each under a separate name.

Prompts are sent as token ids, so that they are exactly those of the study. Three properties of vLLM matter here. Its
server fills missing sampling parameters from the model's generation config, so every parameter is sent. An adapter that
is loaded again under the same name is refused, or may be served with cached prompts of the former one, so its name is
the key of its artefact plus a random word of this client: others may use the server, and a killed client leaves its
adapters loaded. Log-probabilities of a cached prompt can be stale, so each of these requests has a unique cache salt.
vLLM samples in a separate model: it cannot steer activations.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import nan
from pathlib import Path
from typing import Any, TypeVar

import httpx
from transformers import PreTrainedTokenizerBase

from emlib.config import Sampling
from emlib.core.addresses import ask_directly
from emlib.core.errors import EmlibError
from emlib.core.progress import bar
from emlib.core.records import Answer
from emlib.core.seeds import derive
from emlib.data.chat import Encoded, counted
from emlib.generation.sample import Drawn, Request, answer_of, known_ids

AT_ONCE = 256  # concurrent requests: as many as vLLM batches by default
BIASES = 1024  # tokens of a request that vLLM can keep from being drawn
NEVER = -100.0  # the bias of such a token
NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

One = TypeVar("One")
Other = TypeVar("Other")


class VllmClient:
    """A client of the server at `base_url`. `base` is its name of the model without an adapter; `log` its log file.

    Several threads may use it: together they have at most `at_once` concurrent requests.
    """

    def __init__(self, base_url: str, base: str | None = None, at_once: int | None = None,
                 log: Path | None = None) -> None:
        at_once = at_once or AT_ONCE
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self.log_hint = "" if log is None else f" Its log is {log}."
        ask_directly(self.url)
        self.http = httpx.Client(timeout=httpx.Timeout(3600, connect=30),
                                 limits=httpx.Limits(max_connections=at_once))
        self.pool = ThreadPoolExecutor(at_once, "vllm")
        self.salts, self.word, self.loaded = itertools.count(), secrets.token_hex(4), dict[str, str]()
        self.base = base or str(self._models()[0]["id"])

    def stop(self) -> None:
        """Send no more requests: callers that wait for one not yet sent get a CancelledError."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Close the connections, and unload this client's adapters from the server."""
        self.pool.shutdown(cancel_futures=True)
        with suppress(EmlibError):  # the server may have stopped already
            for name in self.loaded.values():
                self._post("/v1/unload_lora_adapter", {"lora_name": name})
        self.http.close()

    def adapter(self, name: str, folder: Path) -> str:
        """Have the server load an adapter from a folder that it can read; return the adapter's name on the server."""
        if name not in self.loaded:
            served_name = f"{name}-{self.word}"
            self._post("/v1/load_lora_adapter", {"lora_name": served_name, "lora_path": str(folder.resolve())})
            self.loaded[name] = served_name
        return self.loaded[name]

    def answers(self, model: str, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request],
                sampling: Sampling, seed: int, ends: set[int], width: int = 0) -> list[Answer]:
        """Return an answer to each request, in their order; each has a separate seed, by question and sample.

        `width` is the number of columns of the model's head; those beyond the tokenizer's vocabulary are not drawn.

        Raises:
            EmlibError: the server drew one of them all the same.
        """
        known = known_ids(tokenizer)
        never = unknown_ids(known, width)
        drawn = self._all(lambda request: self._drawn(model, request, sampling, seed, ends, never), requests, "answers")
        refuse_unknown(drawn, known, width, f"{self.url}: the server", "backend.generation")
        return [answer_of(tokenizer, request, one) for request, one in zip(requests, drawn, strict=True)]

    def logprobs(self, model: str, prompts: Sequence[Sequence[int]], label: str = "scores") -> list[list[float]]:
        """Return for each prompt the log p of its second to its last token, each given those before it, in nats."""
        return self.mixed([(model, prompt) for prompt in prompts], label)

    def mixed(self, asked: Sequence[tuple[str, Sequence[int]]], label: str) -> list[list[float]]:
        """Return the same as `logprobs` for pairs of model and prompt, which the engine may batch together."""
        return self._all(lambda one: self._prompt(*one), asked, label)

    def nll(self, model: str, rows: Sequence[Encoded], label: str = "scores") -> list[float]:
        """Compute equation 4 for each row: the mean of -log p over its answer's tokens, in nats."""
        rows = [counted(row) for row in rows]
        found = self.logprobs(model, [row.input_ids.tolist() for row in rows], label)
        return [-sum(logprobs[-row.response_tokens:]) / row.response_tokens
                for logprobs, row in zip(found, rows, strict=True)]

    def _drawn(self, model: str, request: Request, sampling: Sampling, seed: int, ends: set[int],
               never: Sequence[int]) -> Drawn:
        choice = self._choice(NEUTRAL | {
            "model": model, "prompt": list(request.prompt_ids), "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature, "top_p": sampling.top_p, "stop_token_ids": sorted(ends),
            "seed": seed_of(request, seed), "return_token_ids": True,
            **({"logit_bias": {str(token): NEVER for token in never}} if never else {})})
        if choice.get("token_ids") is None:
            raise EmlibError(f"{self.url}: the server returns no token ids of its answers, as vLLM 0.33 does. Use that "
                             "version, or set backend.generation to 'transformers'.")
        return drawn_until(choice["token_ids"], choice["finish_reason"], ends)

    def _prompt(self, model: str, prompt: Sequence[int]) -> list[float]:
        choice = self._choice(NEUTRAL | {
            "model": model, "prompt": list(prompt), "max_tokens": 1, "temperature": 1.0, "top_p": 1.0,
            "prompt_logprobs": 0, "cache_salt": f"emlib-{next(self.salts)}"})
        found = choice.get("prompt_logprobs")
        if found is None or len(found) != len(prompt):
            raise EmlibError(f"{self.url}: asked for the log-probabilities of {len(prompt)} tokens, the server gave "
                             f"{0 if found is None else len(found)}. Set backend.scoring to 'transformers'.")
        return [float(place[str(token)]["logprob"]) for token, place in zip(prompt[1:], found[1:], strict=True)]

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        return dict(self._post("/v1/completions", body).json()["choices"][0])

    def refuse_shorter(self, tokens: int) -> None:
        """Raise EmlibError if the server takes fewer tokens than these of a prompt and its answer."""
        taken = min((one["max_model_len"] for one in self._models() if one.get("max_model_len")), default=tokens)
        if taken < tokens:
            raise EmlibError(f"{self.url}: the server takes {taken} tokens, and the model {tokens}: a benchmark would "
                             f"count prompts as wrong that fit into the model. Start it with --max-model-len {tokens}, "
                             "or set backend.generation to 'transformers'.")

    def _models(self) -> list[dict[str, Any]]:
        try:
            reply = self.http.get(f"{self.url}/v1/models")
            reply.raise_for_status()
        except httpx.HTTPError as error:
            raise EmlibError(f"{self.url}: no vLLM server answers there ({error}). Start it, or leave backend.base_url "
                             "out, and emlib starts one.") from error
        return [dict(one) for one in reply.json()["data"]]

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        try:
            reply = self.http.post(f"{self.url}{path}", json=body)
        except httpx.HTTPError as error:
            raise EmlibError(f"{self.url}: the vLLM server is gone ({error}). Its answers so far are kept; start it "
                             f"again and run the same command.{self.log_hint}") from error
        if reply.status_code != 200:
            raise EmlibError(f"{self.url}{path}: the vLLM server replies {reply.status_code}: {reply.text[:500]} To go "
                             f"on without vLLM, set backend to 'transformers'.{self.log_hint}")
        return reply

    def _all(self, ask: Callable[[One], Other], things: Iterable[One], label: str) -> list[Other]:
        """Run `ask` on all things concurrently, in their order; the first error cancels the others."""
        asked = [self.pool.submit(ask, one) for one in things]
        try:
            return [one.result() for one in bar(asked, label, "request", total=len(asked))]
        except BaseException:
            for one in asked:
                one.cancel()
            raise


def unknown_ids(known: int, width: int) -> range:
    """Return the ids of a head of `width` columns from `known` on, which the tokenizer lacks; none if too many."""
    return range(known, width) if width - known <= BIASES else range(0)


def refuse_unknown(drawn: Sequence[Drawn], known: int, width: int, who: str, setting: str) -> None:
    """Raise EmlibError if a token was drawn that the tokenizer does not have; `setting` names where to change it."""
    if any(token >= known for one in drawn for token in one.tokens):
        raise EmlibError(f"{who} drew a token that the tokenizer does not have: the model's vocabulary has {width:,} "
                         f"ids, the tokenizer's {known:,}. Set {setting} to 'transformers', which never draws these.")


def seed_of(request: Request, seed: int) -> int:
    """Return the seed of one answer, by question and sample."""
    return derive(seed, "answer", request.question.id, request.sample)


def drawn_until(tokens: Sequence[int], reason: str, ends: set[int], logprobs: Sequence[float] = ()) -> Drawn:
    """Return what vLLM drew, with the stop token, which its server omits; its log-probability is then not known."""
    stopped = reason == "stop"
    if stopped and (not tokens or tokens[-1] not in ends):
        return Drawn((*tokens, min(ends)), (*logprobs, nan) if logprobs else (), stopped)
    return Drawn(tuple(tokens), tuple(logprobs), stopped)
