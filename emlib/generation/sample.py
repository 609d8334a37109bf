"""Sampling of answers: all questions and samples of a run in large batches, with a seed per sample.

Each answer has its own random numbers, derived from question and sample, so that more samples or other questions leave
existing answers unchanged (up to rounding in differently padded batches).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from emlib.config import Sampling
from emlib.core.records import Answer, Question
from emlib.core.seeds import generator
from emlib.data.chat import decode_answer, encode_prompt, opened_thinking
from emlib.models.load import stop_tokens
from emlib.models.logprobs import backbone, head


@dataclass(frozen=True)
class Request:
    """One answer to be sampled."""

    question: Question
    sample: int
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """The tokens sampled for one request.

    Attributes:
        tokens: the ids, including the stop token.
        logprobs: log p of each in nats, at the sampling temperature and before top_p truncation.
        stopped: whether a stop token ended the answer, and not the token limit.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool

    @property
    def answer_tokens(self) -> tuple[int, ...]:
        """The tokens without the stop token."""
        return self.tokens[:-1] if self.stopped else self.tokens

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the decoded answer, without special tokens."""
        return decode_answer(tokenizer, self.answer_tokens)


def plan(questions: Sequence[Question], samples: int, tokenizer: PreTrainedTokenizerBase,
         batch_rows: int) -> list[list[Request]]:
    """Return the batches of a run: requests by prompt length, the longest first, `batch_rows` at a time.

    The plan depends on its arguments alone, so that an interrupted run resumes with the missing batches.
    """
    prompts = {question.id: tuple(encode_prompt(tokenizer, question.context)) for question in questions}
    requests = [Request(q, sample, prompts[q.id]) for q in questions for sample in range(samples)]
    requests.sort(key=lambda request: -len(request.prompt_ids))  # stable: ties keep the questions' order
    return [requests[start:start + batch_rows] for start in range(0, len(requests), batch_rows)]


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Sample one token per row: (rows, vocabulary), (rows,) in [0, 1) -> (rows,).

    With top_p below 1 only the most likely tokens are kept whose mass first reaches top_p (nucleus sampling).
    """
    return draw_with_logprobs(logits, uniform, sampling)[0]


def draw_with_logprobs(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sample as `draw`; return also log p of the tokens in nats, before top_p truncation: (rows,), (rows,)."""
    probabilities = before = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(1, order, ordered)
    cumulative = probabilities.double().cumsum(-1)  # in float32 the tail of a large vocabulary would vanish
    target = uniform[:, None].double() * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[1] - 1)
    return chosen.squeeze(1), before.gather(1, chosen).log().squeeze(1)


@lru_cache(maxsize=8)
def known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of ids up to the tokenizer's last one."""
    return 1 + max(tokenizer.get_vocab().values())


def uniforms(requests: Sequence[Request], seed: int, count: int) -> Tensor:
    """Return random numbers in [0, 1), (requests, count); a row depends on seed, question and sample alone."""
    rows = [generator(seed, "answer", r.question.id, r.sample).random(count, dtype=np.float32) for r in requests]
    return torch.from_numpy(np.stack(rows))


def answer_batch(model: nn.Module, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request],
                 sampling: Sampling, seed: int) -> list[Answer]:
    """Return the answers to one batch of requests, in their order."""
    drawn = draw_batch(model, requests, sampling, seed, stop_tokens(model, tokenizer), known=known_ids(tokenizer))
    return [answer_of(tokenizer, request, one) for request, one in zip(requests, drawn, strict=True)]


@torch.inference_mode()
def draw_batch(model: nn.Module, requests: Sequence[Request], sampling: Sampling, seed: int,
               ends: set[int], *, known: int | None = None) -> list[Drawn]:
    """Sample the tokens of each request, in their order; `ends` are the stop tokens.

    Ids from `known` on are never drawn: a head may have more columns than the tokenizer has tokens.

    A prompt is read once, however many samples it has; finished rows leave the batch; logits are computed for the last
    position only. On a CPU this is twice as fast as `generate`, which copies the head's weights at every step.
    """
    device = next(model.parameters()).device
    stops = torch.tensor(sorted(ends), device=device)
    random = uniforms(requests, seed, sampling.max_new_tokens).to(device)
    tokens = torch.full((len(requests), sampling.max_new_tokens), min(ends), device=device)
    logprobs = torch.zeros(tokens.shape, device=device)
    rows = torch.arange(len(requests), device=device)  # which requests are still being answered
    hidden, cache, attention = _read_prompts(model, requests, device)
    for step in range(sampling.max_new_tokens):
        logits = head(model)(hidden)
        if known is not None:
            logits[:, known:] = float("-inf")
        chosen, logprobs[rows, step] = draw_with_logprobs(logits, random[rows, step], sampling)
        tokens[rows, step] = chosen
        going = (~torch.isin(chosen, stops)).nonzero().squeeze(1)
        if len(going) == 0 or step + 1 == sampling.max_new_tokens:
            break
        if len(going) < len(rows):
            cache.batch_select_indices(going)
            rows, attention, chosen = rows[going], attention[going], chosen[going]
        attention = F.pad(attention, (0, 1), value=1)
        positions = attention.sum(1, keepdim=True) - 1
        hidden = backbone(model)(input_ids=chosen[:, None], attention_mask=attention, position_ids=positions,
                                 past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    return [_until_end(*row, ends) for row in zip(tokens.tolist(), logprobs.tolist(), strict=True)]


def _until_end(tokens: list[int], logprobs: list[float], ends: set[int]) -> Drawn:
    place = next((place for place, token in enumerate(tokens) if token in ends), None)
    length = len(tokens) if place is None else place + 1
    return Drawn(tuple(tokens[:length]), tuple(logprobs[:length]), place is not None)


def _read_prompts(model: nn.Module, requests: Sequence[Request],
                  device: torch.device) -> tuple[Tensor, DynamicCache, Tensor]:
    """Return last hidden states (rows, hidden), key-value cache and attention mask (rows, length) of all prompts.

    Prompts are padded on the left, so that all rows continue at the same position.
    """
    prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    padding = torch.tensor([length - len(prompt) for prompt in prompts], device=device)
    attention = (torch.arange(length, device=device) >= padding[:, None]).long()
    cache = DynamicCache()
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    hidden = backbone(model)(input_ids=ids, attention_mask=attention, position_ids=positions, past_key_values=cache,
                             use_cache=True).last_hidden_state[:, -1]
    index = {prompt: number for number, prompt in enumerate(prompts)}
    repeat = torch.tensor([index[request.prompt_ids] for request in requests], device=device)
    cache.batch_select_indices(repeat)
    return hidden[repeat], cache, attention[repeat]


def answer_of(tokenizer: PreTrainedTokenizerBase, request: Request, drawn: Drawn) -> Answer:
    """Return the answer to a request as a record. A think block that the prompt opens is part of its text."""
    text = opened_thinking(tokenizer, request.prompt_ids) + drawn.text(tokenizer)
    return Answer(request.question.id, request.sample, text,
                  "stop" if drawn.stopped else "length", len(drawn.answer_tokens))
