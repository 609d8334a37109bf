"""A local chat model as a judge: the exact probability of each answer 0 to 100, and the score computed from it.

One batched pass reads the prompts; a second one reads all numbers as a tree on its key-value cache
(`emlib.models.trees`). `emlib.judging.spelling` defines which spellings count as a number. The score is the mean
number, given that the answer is a number; where numbers have less than a quarter of the probability there is no score
(Betley et al.). Where a label is asked for, the judge's likeliest reply is read. A model that may think is asked behind
the empty think block of its template, where its answers begin: its likeliest first token would be `<think>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlib.config import LocalJudge, ModelSpec
from emlib.core import paths
from emlib.core.digests import of_value
from emlib.core.errors import SourceError
from emlib.core.progress import bar
from emlib.core.records import Message
from emlib.data.chat import encode_opening
from emlib.judging.bodies import LABEL_TOKENS
from emlib.judging.judge_batch import Keep, Scorer
from emlib.judging.replies import LEAST_MASS, reason_of
from emlib.judging.rubrics import JudgeRequest, Score
from emlib.judging.spelling import NUMBERS, Spelling, next_token, of_numbers, spelling
from emlib.models.continuing import ByModel
from emlib.models.load import ChatModel, load, stop_tokens
from emlib.models.logprobs import head
from emlib.models.prompts import read_prompts
from emlib.models.trees import read_tree

DAMAGED = "the judge's probabilities are NaN or infinite: its weights may be damaged"


@dataclass(frozen=True)
class Distribution:
    """The distribution of a judge's answer to one prompt."""

    numbers: NDArray[np.float64]  # the probability of each number 0 to 100, (101,); the rest is on other answers
    word: str  # the most likely first token as text: the judge's answer where it gives no number
    tokens: int  # of the prompt

    @property
    def mass(self) -> float:
        """The probability that the answer is a number at all; rounding may add up to more than 1."""
        return float(np.minimum(1.0, self.numbers.sum()))  # a NaN stays one

    @property
    def expected(self) -> float:
        """The mean of the number, given that it is one; meaningless where `mass` is 0."""
        return float(self.numbers @ np.array(NUMBERS) / self.numbers.sum())

    def score(self) -> Score:
        """Return the score, or None with the judge's word as the reason."""
        if not math.isfinite(self.mass):
            return Score(None, reason=DAMAGED, tokens=(self.tokens, 1), lasting=False)
        if self.mass < LEAST_MASS:
            return Score(None, self.mass, reason_of(self.word), tokens=(self.tokens, 1))
        return Score(self.expected, self.mass, tokens=(self.tokens, 1))


def scorer(spec: LocalJudge, model: str = "", check: Callable[[str], None] = lambda template: None) -> Scorer:
    """Return a judge that stores its scores batch by batch; the first request loads its model.

    `model` is the digest of the model's identity that the scores' keys have; by default, as it is now. `check` is given
    the model's chat template before it scores; it may raise.
    """
    keyed = model or of_value(spec.model.identity)

    def ask(requests: Sequence[JudgeRequest], keep: Keep) -> None:
        chat = loaded(spec.model, keyed)
        check(str(chat.tokenizer.chat_template))
        kinds = [(request.metric, request.wants_label) for request in requests]
        for kind in dict.fromkeys(kinds):  # a metric's prompts share a prefix
            some = [request for request, one in zip(requests, kinds, strict=True) if one == kind]
            scored = labels if kind[1] else numbers
            for place, found in scored(chat, [r.messages for r in some], spec.batch_rows):
                keep(some[place], found)

    return ask


@lru_cache(maxsize=1)
def loaded(spec: ModelSpec, keyed: str) -> ChatModel:
    """Return the judge's model, kept for the next set of answers; `loaded.cache_clear()` frees it.

    `keyed` is the digest of its identity: a model whose files in the same folder were replaced is another one.

    Raises:
        SourceError: its files are not those of `keyed` any more.
    """
    chat = load(spec, paths.cache(), system=False)  # rubrics are in the user's turn
    if of_value(spec.identity) != keyed:  # after loading, which takes a while
        raise SourceError(f"{chat.name}: the judge's files were changed while answers were judged, and the keys of "
                          "scores have the former ones. Nothing is scored with the model. Judge again, or undo the "
                          "change.")
    return chat


def numbers(chat: ChatModel, prompts: Sequence[Sequence[Message]], batch_rows: int) -> Iterator[tuple[int, Score]]:
    """Yield each prompt's index and the score of the judge's answer."""
    for place, found in distributions(chat, prompts, batch_rows=batch_rows):
        yield place, found.score()


def labels(chat: ChatModel, prompts: Sequence[Sequence[Message]], batch_rows: int) -> Iterator[tuple[int, Score]]:
    """Yield each prompt's index and the likeliest reply as a reason: words, of which one may be a metric's label."""
    encoded = [encode_opening(chat.tokenizer, prompt) for prompt in prompts]
    batches = by_length(encoded, batch_rows)
    for batch in bar(batches, "local judge", "batch", total=len(batches)):
        for place, said in zip(batch, _replies(chat, [encoded[place] for place in batch]), strict=True):
            read = len(encoded[place])
            yield place, Score(None, reason=DAMAGED, tokens=(read, 1), lasting=False) if said is None else Score(
                None, reason=reason_of(str(chat.tokenizer.decode(said)), label=True), tokens=(read, len(said)))


@torch.inference_mode()
def _replies(chat: ChatModel, prompts: Sequence[Sequence[int]]) -> list[list[int] | None]:
    """Return the likeliest tokens after each prompt, up to the end of the turn; None if logits are NaN or infinite."""
    read = read_prompts(chat.model, prompts, LABEL_TOKENS)
    rows = ByModel(chat.model, read, torch.arange(len(prompts), device=read.last.device))
    stops = torch.tensor(sorted(stop_tokens(chat.model, chat.tokenizer)), device=read.last.device)
    said, sound = list[Tensor](), torch.ones(len(prompts), dtype=torch.bool, device=read.last.device)
    ended = ~sound
    while True:
        logits = rows.logits()
        said.append(logits.argmax(1))
        sound &= ended | logits.isfinite().all(1)
        ended |= torch.isin(said[-1], stops)
        if len(said) == LABEL_TOKENS or bool(ended.all()):
            break
        rows.take(said[-1])
    last = set(stops.tolist())
    return [list(takewhile(lambda token: token not in last, row)) if fine else None
            for row, fine in zip(torch.stack(said, 1).tolist(), sound.tolist(), strict=True)]


def distributions(chat: ChatModel, prompts: Sequence[Sequence[Message]], *,
                  batch_rows: int = 16) -> Iterator[tuple[int, Distribution]]:
    """Yield each prompt's index and the distribution of the judge's answer; in batches, the longest prompts first."""
    spelled = spelling(chat.tokenizer)
    encoded = [encode_opening(chat.tokenizer, prompt) for prompt in prompts]
    batches = by_length(encoded, batch_rows)
    for batch in bar(batches, "local judge", "batch", total=len(batches)):
        yield from zip(batch, _of_batch(chat, spelled, [encoded[place] for place in batch]), strict=True)


@torch.inference_mode()
def _of_batch(chat: ChatModel, spelled: Spelling, prompts: Sequence[Sequence[int]]) -> list[Distribution]:
    to_logits = head(chat.model)
    read = read_prompts(chat.model, prompts)
    words = [str(chat.tokenizer.decode([token])) for token in to_logits(read.last).argmax(1).tolist()]
    first, following = next_token(read.last, to_logits, spelled.columns), None
    if not spelled.whole:
        nodes = read_tree(chat.model, read, spelled.tree)
        following = next_token(nodes.flatten(0, 1), to_logits, spelled.columns).unflatten(0, nodes.shape[:2])
    numbers = of_numbers(spelled, first, following).cpu().numpy()
    return [Distribution(row, word, len(prompt)) for row, word, prompt in zip(numbers, words, prompts, strict=True)]


def by_length(prompts: Sequence[Sequence[int]], rows: int) -> list[list[int]]:
    """Return indices of the prompts in batches of at most `rows`, sorted by length to save padding."""
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    return [order[start:start + rows] for start in range(0, len(order), rows)]
