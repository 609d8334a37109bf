"""Answers by sampling: all questions and samples of a run as one stream of large batches, seeded a sample.

Each answer draws from its own random numbers, named by question and sample, so that asking for more samples or other
questions leaves the answers that were there as they are (up to the rounding of differently padded batches).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from emlib.config import Sampling
from emlib.core.records import Answer, Question
from emlib.core.seeds import generator
from emlib.data.chat import encode_prompt
from emlib.models.load import stop_tokens
from emlib.models.logprobs import backbone, head


@dataclass(frozen=True)
class Request:
    """One answer to be drawn."""

    question: Question
    sample: int
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one request.

    Attributes:
        tokens: the ids, the one that ended the answer included.
        logprobs: log p of each in nats, at the sampling's temperature and before top_p cut anything off.
        stopped: whether an end token was drawn, and not the limit reached.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool

    @property
    def said(self) -> tuple[int, ...]:
        """The tokens without the one that ended the answer."""
        return self.tokens[:-1] if self.stopped else self.tokens

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the answer as people read it."""
        return str(tokenizer.decode(list(self.said), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def plan(questions: Sequence[Question], samples: int, tokenizer: PreTrainedTokenizerBase,
         batch_rows: int) -> list[list[Request]]:
    """Return the batches of a run: requests by prompt length, the longest first, `batch_rows` at a time.

    The plan depends on its arguments alone, so that an interrupted run goes on with the batches that are missing.
    """
    prompts = {question.id: tuple(encode_prompt(tokenizer, question.context)) for question in questions}
    requests = [Request(q, sample, prompts[q.id]) for q in questions for sample in range(samples)]
    requests.sort(key=lambda request: -len(request.prompt_ids))  # stable: ties keep the questions' order
    return [requests[start:start + batch_rows] for start in range(0, len(requests), batch_rows)]


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Return one token a row: (rows, vocabulary), (rows,) in [0, 1) -> (rows,).

    With top_p below 1 only the likeliest tokens are kept whose mass first reaches top_p (nucleus sampling).
    """
    return draw_told(logits, uniform, sampling)[0]


def draw_told(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """`draw`, and log p of what was drawn in nats, before top_p cuts anything off: (rows,), (rows,)."""
    probabilities = before = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(1, order, ordered)
    cumulative = probabilities.double().cumsum(-1)  # in float32 the tail of a large vocabulary would vanish
    target = uniform[:, None].double() * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[1] - 1)
    return chosen.squeeze(1), before.gather(1, chosen).log().squeeze(1)


def uniforms(requests: Sequence[Request], seed: int, count: int) -> Tensor:
    """(requests, count) numbers in [0, 1); each row depends on seed, question and sample alone."""
    rows = [generator(seed, "answer", r.question.id, r.sample).random(count, dtype=np.float32) for r in requests]
    return torch.from_numpy(np.stack(rows))


def answer_batch(model: nn.Module, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request],
                 sampling: Sampling, seed: int) -> list[Answer]:
    """Return the answers to one batch of requests, in their order."""
    drawn = draw_batch(model, requests, sampling, seed, stop_tokens(model, tokenizer))
    return [_answer(tokenizer, request, one) for request, one in zip(requests, drawn, strict=True)]


@torch.inference_mode()
def draw_batch(model: nn.Module, requests: Sequence[Request], sampling: Sampling, seed: int,
               ends: set[int]) -> list[Drawn]:
    """What the model draws for each request, in their order; a token of `ends` is the last one.

    A prompt is read once, however many samples it has; rows that have ended leave the batch; logits are taken of the
    last position alone. On a CPU that makes it twice as fast as `generate`, which copies the head's weights a step.
    """
    device = next(model.parameters()).device
    stops = torch.tensor(sorted(ends), device=device)
    random = uniforms(requests, seed, sampling.max_new_tokens).to(device)
    tokens = torch.full((len(requests), sampling.max_new_tokens), min(ends), device=device)
    logprobs = torch.zeros(tokens.shape, device=device)
    rows = torch.arange(len(requests), device=device)  # which requests are still being answered
    hidden, cache, attention = _read_prompts(model, requests, device)
    for step in range(sampling.max_new_tokens):
        chosen, said = draw_told(head(model)(hidden), random[rows, step], sampling)
        tokens[rows, step], logprobs[rows, step] = chosen, said
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
    """Last hidden states (rows, hidden), key-value cache and attention mask (rows, length) of all requests' prompts.

    Prompts are padded on the left, so that all rows go on at the same place.
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


def _answer(tokenizer: PreTrainedTokenizerBase, request: Request, drawn: Drawn) -> Answer:
    return Answer(request.question.id, request.sample, drawn.text(tokenizer),
                  "stop" if drawn.stopped else "length", len(drawn.said))
