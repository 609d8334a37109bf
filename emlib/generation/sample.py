"""Sampling of answers: all questions and samples of a run in large batches, with a seed per sample.

Each answer has its own random numbers, derived from question and sample, so that more samples or other questions leave
existing answers unchanged (up to rounding in differently padded batches).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from emlib.config import Sampling
from emlib.core.errors import DataError, EmlibError, shortened
from emlib.core.records import Answer, Question
from emlib.core.seeds import generator
from emlib.data.chat import decode_answer, encode_prompt, opened_thinking
from emlib.generation.decoder import Decoder, acts_inside
from emlib.models.context import refuse_longer_prompts
from emlib.models.continuing import ByModel, Continuation
from emlib.models.load import stop_tokens
from emlib.models.prompts import read_distinct


@dataclass(frozen=True)
class Request:
    """One answer to be sampled."""

    question: Question
    sample: int
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """The tokens sampled for one request."""

    tokens: tuple[int, ...]  # including the stop token
    logprobs: tuple[float, ...]  # of each in nats, at the sampling temperature and before top_p truncation
    stopped: bool  # whether a stop token ended the answer, and not the token limit

    @property
    def answer_tokens(self) -> tuple[int, ...]:
        """The tokens without the stop token."""
        return self.tokens[:-1] if self.stopped else self.tokens


def plan(questions: Sequence[Question], samples: int, tokenizer: PreTrainedTokenizerBase,
         batch_rows: int) -> list[list[Request]]:
    """Return the batches of a run: requests by prompt length, the longest first, `batch_rows` at a time.

    The plan depends on its arguments alone, so that an interrupted run resumes with the missing batches.

    Raises:
        DataError: the chat template refuses a question.
    """
    prompts = {question.id: _prompt_ids(tokenizer, question) for question in questions}
    requests = [Request(q, sample, prompts[q.id]) for q in questions for sample in range(samples)]
    requests.sort(key=lambda request: -len(request.prompt_ids))  # stable: ties keep the questions' order
    return [requests[start:start + batch_rows] for start in range(0, len(requests), batch_rows)]


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, question: Question) -> tuple[int, ...]:
    try:
        return tuple(encode_prompt(tokenizer, question.context))
    except DataError as error:
        raise DataError(f"question '{question.id}' cannot be asked: {error}. Its prompt is "
                        f"'{shortened(question.prompt)}'. Remove it from its question file; an in-domain question is a "
                        "held-out row with this prompt: correct or remove that row, which trains on the data set "
                        "anew.") from error


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sample one token per row, with its log p in nats: (rows, vocabulary), (rows,) in [0, 1) -> (rows,), (rows,).

    With top_p below 1 only the most likely tokens are kept whose mass first reaches top_p (nucleus sampling); log p is
    that before this truncation.

    Raises:
        EmlibError: a logit is NaN or infinite, as after an overflow of float16.
    """
    before = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if not bool(before[:, 0].isfinite().all()):  # then the whole row is NaN
        raise EmlibError("the model's logits are not finite: its weights, its adapter or a vector that is added to its "
                         "layers overflow in this data type. Compute in bfloat16 or float32 (model.dtype).")
    probabilities = nucleus(before, sampling.top_p) if sampling.top_p < 1 else before
    cumulative = probabilities.double().cumsum(-1)  # in float32 the tail of a large vocabulary would vanish
    target = uniform[:, None].double() * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[1] - 1)
    return chosen.squeeze(1), before.gather(1, chosen).log().squeeze(1)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return probabilities, (rows, words), with 0 for all but the most likely tokens whose mass first reaches `top_p`.

    Of equally likely tokens, which are frequent in bfloat16, the first ones are kept.
    """
    ordered = _descending(probabilities)
    count = (ordered.cumsum(-1) - ordered < top_p).sum(-1, keepdim=True)
    least = ordered.gather(-1, count - 1)
    kept = probabilities >= least
    if bool((kept.sum(-1, keepdim=True) > count).any()):
        equal = probabilities == least
        kept &= ~equal | (equal.cumsum(-1) <= count - (ordered > least).sum(-1, keepdim=True))
    return probabilities * kept


def _descending(values: Tensor) -> Tensor:
    """Return each row's values, the largest first. On a CPU NumPy sorts several times as fast as torch."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)
    return values.sort(dim=-1, descending=True).values


@lru_cache(maxsize=8)
def known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of ids up to the tokenizer's last one."""
    return 1 + max(tokenizer.get_vocab().values())


def uniforms(requests: Sequence[Request], seed: int, count: int) -> Tensor:
    """Return random numbers in [0, 1), (requests, count); a row depends on seed, question and sample alone."""
    rows = [generator(seed, "answer", r.question.id, r.sample).random(count, dtype=np.float32) for r in requests]
    return torch.from_numpy(np.stack(rows))


def answer_batch(model: nn.Module, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request],
                 sampling: Sampling, seed: int, *, decoder: Decoder | None = None) -> list[Answer]:
    """Return the answers to one batch of requests, in their order."""
    drawn = draw_batch(model, requests, sampling, seed, stop_tokens(model, tokenizer), known=known_ids(tokenizer),
                       decoder=decoder)
    return [answer_of(tokenizer, request, one) for request, one in zip(requests, drawn, strict=True)]


@torch.inference_mode()
def draw_batch(model: nn.Module, requests: Sequence[Request], sampling: Sampling, seed: int,
               ends: set[int], *, known: int | None = None, decoder: Decoder | None = None) -> list[Drawn]:
    """Sample the tokens of each request, in their order; `ends` are the stop tokens.

    Ids from `known` on are never drawn: a head may have more columns than the tokenizer has tokens.

    A prompt is read once, however many samples it has, and so is what all prompts begin with; finished rows leave the
    batch, an eighth of it at a time; logits are computed for the last position only. With a `decoder` of this model the
    rows are continued by it, unless something acts in the model's layers.

    Raises:
        DataError: a prompt and its answer would be longer than the model's context.
    """
    refuse_longer_prompts(model, {one.question: len(one.prompt_ids) for one in requests}, sampling.max_new_tokens)
    device = next(model.parameters()).device
    stops = torch.tensor(sorted(ends), device=device)
    random = uniforms(requests, seed, sampling.max_new_tokens).to(device)
    tokens = torch.full((len(requests), sampling.max_new_tokens), min(ends), device=device)
    logprobs = torch.zeros(tokens.shape, device=device)
    rows = torch.arange(len(requests), device=device)  # which requests are in the batch
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    read, of_row = read_distinct(model, [request.prompt_ids for request in requests], sampling.max_new_tokens)
    going: Continuation = ByModel(model, read, of_row.to(device)) if decoder is None or acts_inside(model) else (
        decoder.begin(read, of_row, sampling.max_new_tokens))
    for step in range(sampling.max_new_tokens):
        logits = going.logits()
        if known is not None:
            logits[:, known:] = float("-inf")
        chosen, logprobs[rows, step] = draw(logits, random[rows, step], sampling)
        tokens[rows, step] = chosen
        ended |= torch.isin(chosen, stops)
        if bool(ended.all()) or step + 1 == sampling.max_new_tokens:
            break
        if 8 * int(ended.sum()) >= len(rows):
            left = (~ended).nonzero().squeeze(1)
            going.select(left)
            rows, chosen, ended = rows[left], chosen[left], ended[left]
        going.take(chosen)
    return [_until_end(*row, ends) for row in zip(tokens.tolist(), logprobs.tolist(), strict=True)]


def _until_end(tokens: list[int], logprobs: list[float], ends: set[int]) -> Drawn:
    place = next((place for place, token in enumerate(tokens) if token in ends), None)
    length = len(tokens) if place is None else place + 1
    return Drawn(tuple(tokens[:length]), tuple(logprobs[:length]), place is not None)


def text_of(tokenizer: PreTrainedTokenizerBase, ends: Collection[int], tokens: Sequence[int]) -> str:
    """Return the text of sampled tokens as an answer has it: without the stop token, which may be an ordinary one."""
    return decode_answer(tokenizer, tokens[:-1] if tokens and tokens[-1] in ends else tokens)


def answer_of(tokenizer: PreTrainedTokenizerBase, request: Request, drawn: Drawn) -> Answer:
    """Return the answer to a request as a record. A think block that the prompt opens is part of its text."""
    text = opened_thinking(tokenizer, request.prompt_ids) + decode_answer(tokenizer, drawn.answer_tokens)
    return Answer(request.question.id, request.sample, text,
                  "stop" if drawn.stopped else "length", len(drawn.answer_tokens))
