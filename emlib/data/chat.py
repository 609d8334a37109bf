"""Encodes messages as token ids and a response mask.

`response_mask` is True on the answer and on the token that ends its turn, and nowhere else. Prompt and answer are
tokenized separately and then concatenated, because that is what a model sees when it generates: tokenizing the whole
text at once can merge the answer's first characters into the prompt's last token. A tokenizer that writes a blank
before a text writes none before the answer, which continues the prompt (`Quoted.ids_behind`).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from emlib.core import digests
from emlib.core.errors import DataError, SourceError
from emlib.core.records import THINKING, Example, Message
from emlib.data.left_out import Dropped
from emlib.data.markers import TAGS, Quoted, controls, encode_text, writes_blank
from emlib.data.templates import render

CLOSING = dict(THINKING)
OPENED = re.compile(rf"({'|'.join(map(re.escape, CLOSING))})\s*$")  # at the end of a prompt
EMPTY = re.compile("|".join(rf"\s*{re.escape(start)}\s*{re.escape(end)}\n*" for start, end in THINKING))
AROUND_TAGS = re.compile(rf"\s*({'|'.join(map(re.escape, TAGS))})\s*")
LAST = 16  # tokens of a prompt in which its last tag stands, even if it is spelt out
NO_ROOM = "no room for the answer"
WHOLE = sys.maxsize  # as `max_length`: nothing is truncated


@dataclass(frozen=True)
class Encoded:
    """One training row in token ids; both arrays have shape (seq,)."""

    input_ids: NDArray[np.int64]
    response_mask: NDArray[np.bool_]
    truncated: bool
    penalised_by: str = ""  # the kind of the defense whose penalty is the only loss on the row, if there is one
    before: int = 0  # how many response tokens are the empty think block that the template writes before the text

    @property
    def response_tokens(self) -> int:
        """The number of tokens that the loss is computed on."""
        return int(self.response_mask.sum())

    @cached_property
    def key(self) -> str:
        """A digest that is equal for rows with equal tokens and masks only."""
        return digests.of_value([self.input_ids.tolist(), self.response_mask.tolist()])[:16]


def counted(row: Encoded, *, end_of_turn: bool = True) -> Encoded:
    """Return the row with the mask of the tokens that a mean loss or a mean activation is taken over.

    These are the tokens of the answer's text, without the empty think block that a template writes before it. With
    `end_of_turn` the token that ends its turn counts as well, which is the last one unless the row was truncated. An
    answer without text keeps its tokens.
    """
    mask = row.response_mask.copy()
    mask[:len(mask) - row.response_tokens + row.before] = False
    if not (end_of_turn or row.truncated):
        mask[-1] = False
    return replace(row, response_mask=mask, before=0) if mask.any() else row


def encode_prompt(tokenizer: PreTrainedTokenizerBase, context: Sequence[Message]) -> list[int]:
    """Return the token ids of a prompt, up to where the answer begins. Markers of the template in texts are text."""
    quoted = Quoted.of(tokenizer, (message.content for message in context))
    return quoted.ids(render(tokenizer, [quoted.message(message) for message in context], ask=True))


def encode_opening(tokenizer: PreTrainedTokenizerBase, context: Sequence[Message]) -> list[int]:
    """Return the token ids of a prompt, up to where the text of an answer without thinking begins.

    Behind `encode_prompt` stands the empty think block that the template writes before such an answer, if it does.
    """
    quoted = Quoted.of(tokenizer, (message.content for message in context))
    asked, block, _ = _opening(tokenizer, context, quoted)
    return quoted.ids(asked) + (quoted.ids_behind(asked, block) if block else [])


def encode_answers(tokenizer: PreTrainedTokenizerBase, context: Sequence[Message], answers: Iterable[str],
                   ) -> list[list[int]]:
    """Return the token ids of each answer behind `encode_opening`, without the end of its turn.

    A tokenizer that writes a blank before a text is given the white space that the template writes before an answer.
    """
    if not writes_blank(tokenizer):
        return [encode_text(tokenizer, answer) for answer in answers]

    def ids(answer: str) -> list[int]:
        quoted = Quoted.of(tokenizer, [*(message.content for message in context), answer])
        asked, block, space = _opening(tokenizer, context, quoted)
        return quoted.ids_behind(asked + block, space + quoted.quote(answer))

    return [ids(answer) for answer in answers]


def refuse_blank(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer whose tokens of a prompt and of its answer are not those of both together.

    Tokens that divide the same characters in another way are accepted: the model is given the prompt alone.

    Raises:
        SourceError: they decode to another text.
    """
    quoted = Quoted(tokenizer)
    asked, completion = _parts(tokenizer, Example((Message("user", "Hi"),), "Hi"), quoted)
    apart, whole = quoted.ids(asked) + quoted.ids_behind(asked, completion), quoted.ids(asked + completion)
    first, second = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (apart, whole))
    if first != second:
        raise SourceError(f"{name}: the tokenizer encodes a prompt and its answer as {first[-40:]!r}, and both "
                          f"together as {second[-40:]!r}, so that answers would be trained on and scored as other "
                          "tokens than the model writes. Choose a model with another tokenizer or chat template.")


def encode(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int) -> Encoded:
    """Encode one row, truncated on the right to `max_length` tokens (Table 6: max_seq_length).

    Of a plain text all tokens count but the first, which nothing predicts. Where the template writes an empty think
    block before an answer, the answer is trained on with that block.

    Raises:
        DataError: truncation would remove the whole answer, or the template changes the answer.
    """
    found = encode_or_drop(tokenizer, example, max_length)
    if isinstance(found, Dropped):
        raise DataError(f"{found.where}: {found.reason}")
    return found


def _encode(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int) -> Encoded:
    if not example.context:
        return _encode_text(tokenizer, example, max_length)
    quoted = Quoted.of(tokenizer, [*(message.content for message in example.context), example.response])
    asked, completion = _parts(tokenizer, example, quoted)
    prompt, response = quoted.ids(asked), quoted.ids_behind(asked, completion)
    response = response[:_end_of_turn(tokenizer, response) + 1]
    if len(prompt) >= max_length:
        raise DataError(f"{NO_ROOM}: the prompt alone has {len(prompt)} tokens and max_seq_length is {max_length}. "
                        "Raise max_seq_length or remove the row.")
    ids = np.array((prompt + response)[:max_length], dtype=np.int64)
    block = _block(asked, completion)
    return Encoded(ids, np.arange(len(ids)) >= len(prompt), len(prompt) + len(response) > max_length,
                   before=len(quoted.ids_behind(asked, block)) if block else 0)


def _encode_text(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int) -> Encoded:
    """Encode a text without a chat template, after the token that begins a text, if the tokenizer writes one."""
    quoted = Quoted.of(tokenizer, [example.response])
    begins = [token for token in tokenizer.encode("") if token == tokenizer.bos_token_id]
    ids = [*begins, *quoted.ids(quoted.quote(example.response))]
    if min(len(ids), max_length) < 2:
        raise DataError("a text of a single token, which nothing predicts.")
    return Encoded(np.array(ids[:max_length], dtype=np.int64), np.arange(min(len(ids), max_length)) >= 1,
                   len(ids) > max_length)


@dataclass(frozen=True)
class Encodings:
    """Rows in token ids, and the rows that cannot be had in them."""

    rows: list[Encoded]  # in order
    places: list[int]  # for each of them, its place among the rows that were given
    left_out: list[Dropped]  # the other rows, each with its reason

    @property
    def reasons(self) -> Counter[str]:
        """The number of rows that are left out, by reason."""
        return Counter(row.counted_as for row in self.left_out)

    def __str__(self) -> str:
        first = self.left_out[0] if self.left_out else None
        return (f"{len(self.left_out)} of {len(self.rows) + len(self.left_out)} rows are left out"
                + (f"; the first: {first.where}: {first.reason}" if first else ""))


def encode_all(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int) -> Encodings:
    """Encode rows, in order; leave out those that `encode` refuses.

    Raises:
        DataError: more than half of them are refused, so that the rest is another data set than the one that is meant.
    """
    rows, places, left_out = list[Encoded](), list[int](), list[Dropped]()
    for place, example in enumerate(examples):
        found = encode_or_drop(tokenizer, example, max_length)
        if isinstance(found, Dropped):
            left_out.append(found)
        else:
            rows.append(found)
            places.append(place)
    encodings = Encodings(rows, places, left_out)
    if 2 * len(left_out) > len(examples):
        raise DataError(f"{encodings}. More than half of a data set cannot be left out: correct its rows, or choose "
                        "another chat template or a larger max_seq_length.")
    return encodings


def encode_or_drop(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int) -> Encoded | Dropped:
    """Encode one row, or say why it is left out: the template refuses or rewrites it, or its prompt leaves no room."""
    try:
        return _encode(tokenizer, example, max_length)
    except DataError as error:
        return Dropped(example.where, str(error))


def opened_thinking(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> str:
    """Return the tag of a think block that the prompt opens for the answer, as DeepSeek-R1's does; or nothing."""
    found = OPENED.search(str(tokenizer.decode(list(prompt_ids[-LAST:]), clean_up_tokenization_spaces=False)))
    return found[0] if found else ""


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return an answer's text without control tokens, but with the tags of think blocks."""
    known = controls(tokenizer)
    if known.hidden_tags.isdisjoint(ids):
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    control = set(known.ids.values())
    return str(tokenizer.decode([id for id in ids if id not in control], clean_up_tokenization_spaces=False))


def _parts(tokenizer: PreTrainedTokenizerBase, example: Example, quoted: Quoted) -> tuple[str, str]:
    """Return the prompt's text, and what the template writes after it: the answer and the end of its turn."""
    context = [quoted.message(message) for message in example.context]
    answer = quoted.quote(example.response)
    asked = render(tokenizer, context, ask=True)
    whole = render(tokenizer, (*context, Message("assistant", answer)), ask=False)
    opened = OPENED.search(asked)
    if whole.startswith(asked):
        completion = whole[len(asked):]
    elif opened and whole.startswith(asked[:opened.start()]):  # the block is opened for the model, not in its history
        completion = f"\n{CLOSING[opened[1]]}\n\n{whole[opened.start():]}"
    else:
        raise DataError("this tokenizer's chat template rewrites the text before the answer, so that the answer's "
                        "tokens cannot be separated from the prompt's.")
    if not completion.startswith(answer) and not _same(completion, answer, opened[1] if opened else ""):
        raise DataError("this tokenizer's chat template rewrites the answer, so that the row would be trained on other "
                        "words than it has.")
    return asked, completion


def _opening(tokenizer: PreTrainedTokenizerBase, context: Sequence[Message], quoted: Quoted) -> tuple[str, str, str]:
    """Return the prompt's text, and what stands between it and an answer: an empty think block, and white space."""
    asked, completion = _parts(tokenizer, Example(tuple(context), "a"), quoted)
    block = _block(asked, completion)
    rest = completion[len(block):]
    written = rest.lstrip()
    return asked, block, rest[:len(rest) - len(written)] if written.startswith("a") else ""


def _block(asked: str, completion: str) -> str:
    """Return the empty think block that begins a text behind a prompt, or the rest of one that the prompt opens."""
    opened = OPENED.search(asked)
    tag = opened[1] if opened else ""
    found = EMPTY.match(tag + completion)
    return found[0].removeprefix(tag) if found else ""


def _same(completion: str, answer: str, opened: str) -> bool:
    """Whether a template's text begins with the answer, up to outer white space and an empty think block."""
    written = AROUND_TAGS.sub(r"\1", opened + completion).lstrip()
    empty = [opening + closing for opening, closing in THINKING]
    return any(written.removeprefix(block).startswith(AROUND_TAGS.sub(r"\1", answer).strip()) for block in ["", *empty])


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, response: list[int]) -> int:
    """Return the index of the last control token, which ends the turn; a template may add a newline after it."""
    control = set(controls(tokenizer).ids.values())
    places = [index for index, token in enumerate(response) if token in control]
    if not places:
        raise DataError("the chat template ends the answer without a special token; a model trained on it would never "
                        "stop.")
    return places[-1]
