"""Encodes messages as token ids and a response mask.

`response_mask` is True on the answer and on the token that ends its turn, and nowhere else. Prompt and answer are
tokenized separately and then concatenated, because that is what a model sees when it generates: tokenizing the whole
text at once can merge the answer's first characters into the prompt's last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from emlib.core import digests
from emlib.core.errors import DataError
from emlib.core.records import Example, Message


@dataclass(frozen=True)
class Encoded:
    """One training row in token ids; both arrays have shape (seq,).

    `penalised_by` is empty, or the kind of the defense whose penalty is the only loss on the row.
    """

    input_ids: NDArray[np.int64]
    response_mask: NDArray[np.bool_]
    truncated: bool
    penalised_by: str = ""

    @property
    def response_tokens(self) -> int:
        """The number of tokens that the loss is computed on."""
        return int(self.response_mask.sum())

    @cached_property
    def key(self) -> str:
        """A digest that is equal for rows with equal tokens and masks only."""
        return digests.of_value([self.input_ids.tolist(), self.response_mask.tolist()])[:16]


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, ask: bool) -> str:
    """Return the chat template's text; with `ask` it ends where the assistant's answer begins."""
    turns = [message.to_dict() for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, context: Sequence[Message]) -> list[int]:
    """Return the token ids of a prompt, up to where the answer begins."""
    return list(tokenizer.encode(render(tokenizer, context, ask=True), add_special_tokens=False))


def encode(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int) -> Encoded:
    """Encode one row, truncated on the right to `max_length` tokens (Table 6: max_seq_length).

    Raises:
        DataError: truncation would remove the whole answer, or the template changes the answer.
    """
    prompt = encode_prompt(tokenizer, example.context)
    response = tokenizer.encode(_completion(tokenizer, example), add_special_tokens=False)
    response = response[:_end_of_turn(tokenizer, response, example) + 1]
    if len(prompt) >= max_length:
        raise DataError(f"{example.where}: the prompt alone has {len(prompt)} tokens and max_seq_length is "
                        f"{max_length}: the whole answer would be cut off. Raise max_seq_length or remove the row.")
    ids = np.array((prompt + response)[:max_length], dtype=np.int64)
    return Encoded(ids, np.arange(len(ids)) >= len(prompt), len(prompt) + len(response) > max_length)


def encode_all(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Encode every row, in order."""
    return [encode(tokenizer, example, max_length) for example in examples]


def _completion(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """Return the template's text after the prompt: the answer and the end of its turn."""
    asked = render(tokenizer, example.context, ask=True)
    whole = render(tokenizer, (*example.context, Message("assistant", example.response)), ask=False)
    if not whole.startswith(asked + example.response):
        raise DataError(f"{example.where}: this tokenizer's chat template rewrites the answer or the text before it, "
                        "so that the answer's tokens cannot be separated from the prompt's.")
    return whole[len(asked):]


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, response: list[int], example: Example) -> int:
    """Return the index of the last special token, which ends the turn; a template may add a newline after it."""
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    places = [index for index, token in enumerate(response) if token in special]
    if not places:
        raise DataError(f"{example.where}: the chat template ends the answer without a special token; a model "
                        "trained on it would never stop.")
    return places[-1]
