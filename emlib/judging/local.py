"""A chat model in process as a judge: the exact probability of each answer 0 to 100, and the score that follows.

One pass over the prompts, batched, then all numbers at once as a tree on its cache (`emlib.models.trees`); the numbers'
spelling and what counts as one stand in `emlib.judging.numbers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from emlib.data.chat import encode_prompt
from emlib.judging.numbers import NUMBERS, Spelling, next_token, of_numbers, spelling
from emlib.models.load import ChatModel
from emlib.models.logprobs import head
from emlib.models.trees import by_length, read_prompts, read_tree
from emlib.progress import bar
from emlib.types import Message


@dataclass(frozen=True)
class Distribution:
    """What a judge would answer to one prompt.

    Attributes:
        numbers: the probability of each number 0 to 100, (101,). What is missing to 1 is no number.
        word: the likeliest first token as text: what the judge says where it says no number.
    """

    numbers: NDArray[np.float64]
    word: str

    @property
    def mass(self) -> float:
        """The probability that the answer is a number at all."""
        return float(self.numbers.sum())

    @property
    def expected(self) -> float:
        """The mean of the number, given that it is one; meaningless where `mass` is 0."""
        return float(self.numbers @ np.array(NUMBERS) / self.numbers.sum())


@torch.inference_mode()
def distributions(chat: ChatModel, prompts: Sequence[Sequence[Message]], *, batch_rows: int = 16) -> list[Distribution]:
    """The judge's answers to `prompts`, in their order, however they are batched."""
    spelled = spelling(chat.tokenizer)
    encoded = [encode_prompt(chat.tokenizer, prompt) for prompt in prompts]
    found: dict[int, Distribution] = {}
    batches = by_length(encoded, batch_rows)
    for batch in bar(batches, "local judge", "batch", total=len(batches)):
        found |= zip(batch, _of_batch(chat, spelled, [encoded[place] for place in batch]), strict=True)
    return [found[place] for place in range(len(prompts))]


def _of_batch(chat: ChatModel, spelled: Spelling, prompts: Sequence[Sequence[int]]) -> list[Distribution]:
    to_logits = head(chat.model)
    read = read_prompts(chat.model, prompts)
    words = [str(chat.tokenizer.decode([token])) for token in to_logits(read.last).argmax(1).tolist()]
    first, following = next_token(read.last, to_logits, spelled.columns), None
    if not spelled.whole:
        nodes = read_tree(chat.model, read, spelled.tree)
        following = next_token(nodes.flatten(0, 1), to_logits, spelled.columns).unflatten(0, nodes.shape[:2])
    numbers = of_numbers(spelled, first, following).cpu().numpy()
    return [Distribution(row, word) for row, word in zip(numbers, words, strict=True)]
