"""Encodes text in which a control token's text occurs (`<|im_end|>`) as text, and never as the control token.

A tokenizer cannot tell the markers that the chat template writes from those that stand in a message. So before a chat
is rendered, markers inside messages are replaced by placeholders. Afterwards the template's own markers get other
names, the placeholders become the messages' text again, and a copy of the tokenizer that knows the control tokens by
these other names alone encodes the whole. Text around a marker so has the tokens that it has in any other text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from emlib.core.errors import DataError
from emlib.core.records import THINKING, Message
from emlib.data.templates import render

NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDE0)]  # Unicode has none of these in texts that are exchanged
NAME = "\ufdee{}\ufdef"  # of a control token, in the copy of the tokenizer
TAGS = tuple(tag for pair in THINKING for tag in pair)
ANCHORS = ("\n", ".", "_")  # texts before which a tokenizer may write a blank, in place of the text that is encoded


@dataclass(frozen=True)
class Controls:
    """A tokenizer's control tokens: the special ones, and others that its template writes between turns.

    Tags around a think block are none: they are part of what an answer says.
    """

    ids: Mapping[str, int]  # the id of each by its text
    pattern: re.Pattern[str]  # matches the text of any of them
    hidden_tags: frozenset[int]  # the ids of tags that decoding leaves out like special tokens


def controls(tokenizer: PreTrainedTokenizerBase) -> Controls:
    """Return the tokenizer's control tokens."""
    return _controls(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=8)
def _controls(tokenizer: PreTrainedTokenizerBase, template: str) -> Controls:
    try:
        turns = render(tokenizer, [Message("user", ""), Message("assistant", ""), Message("user", "")], ask=True)
    except DataError:  # a template for one turn only
        turns = ""
    added = {id: token for id, token in tokenizer.added_tokens_decoder.items() if token.content}
    ids = {token.content: id for id, token in added.items()
           if token.content not in TAGS and (token.special or token.content in turns)}
    longest_first = sorted(ids, key=lambda content: (-len(content), content))
    return Controls(ids, re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"),
                    frozenset(id for id, token in added.items() if token.special and token.content in TAGS))


@dataclass(frozen=True)
class Quoted:
    """Placeholders for the control tokens' texts that occur in a chat; none where there are none."""

    tokenizer: PreTrainedTokenizerBase
    placeholders: Mapping[str, str] = field(default_factory=dict)  # of each such text

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Quoted:
        """Return the placeholders for a chat's texts.

        Raises:
            DataError: the texts hold characters that only placeholders may hold.
        """
        whole = "\n".join(texts)
        found = dict.fromkeys(controls(tokenizer).pattern.findall(whole))
        if not found:
            return cls(tokenizer)
        free = next((character for character in NONCHARACTERS if character not in whole), None)
        if free is None or any(character in whole for character in NAME.format("")):
            raise DataError("the row has a marker of the chat template and Unicode's noncharacters (U+FDD0 to U+FDEF) "
                            "in its texts. Remove these characters.")
        return cls(tokenizer, {marker: f"{free}{number}{free}" for number, marker in enumerate(found)})

    def quote(self, text: str) -> str:
        """Return a message's text with placeholders."""
        return controls(self.tokenizer).pattern.sub(lambda marker: self.placeholders[marker[0]], text)

    def message(self, message: Message) -> Message:
        """Return a message with placeholders in its content."""
        return Message(message.role, self.quote(message.content))

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a rendered text; what stood in messages is text.

        Raises:
            DataError: this tokenizer cannot do that.
        """
        if not self.placeholders:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        known = controls(self.tokenizer)
        number = {marker: place for place, marker in enumerate(known.ids)}
        renamed = known.pattern.sub(lambda marker: NAME.format(number[marker[0]]), text)
        for marker, placeholder in self.placeholders.items():
            renamed = renamed.replace(placeholder, marker)
        found = list(_copy(self.tokenizer, str(self.tokenizer.chat_template)).encode(
            renamed, add_special_tokens=False).ids)
        if sum(id in set(known.ids.values()) for id in found) != len(known.pattern.findall(text)):
            raise DataError("the row has a marker of the chat template in its texts, which this tokenizer cannot "
                            "encode as text. Remove the marker or the row.")
        return found

    def ids_behind(self, before: str, text: str) -> list[int]:
        """Return the token ids of a text that continues another, without a blank that begins a text.

        The tokens of both together are cut where those of the first end. If characters of both are in one token, the
        first is replaced by an anchor, because a model that is given the first alone writes no such token.

        Raises:
            DataError: this tokenizer cannot do that.
        """
        if not writes_blank(self.tokenizer):
            return self.ids(text)
        for anchor in (before, *ANCHORS):
            begun, whole = self.ids(anchor), self.ids(anchor + text)
            if whole[:len(begun)] == begun:
                return whole[len(begun):]
        raise DataError("this tokenizer does not encode the answer as a continuation of the prompt.")


@lru_cache(maxsize=8)
def writes_blank(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer writes a blank before a text, as SentencePiece's do, so that a continuation is no text."""
    encode = partial(tokenizer.encode, add_special_tokens=False)
    decode = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    return decode(encode("\n") + encode("a")) != decode(encode("\na"))


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text that stands in no template; control tokens' texts in it are text."""
    quoted = Quoted.of(tokenizer, [text])
    return quoted.ids(quoted.quote(text))


@lru_cache(maxsize=4)
def _copy(tokenizer: PreTrainedTokenizerBase, template: str) -> Tokenizer:
    """Return a copy of the tokenizer in which control tokens have other names (`NAME`)."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError("the row has a marker of the chat template in its texts, and this tokenizer, which is not of "
                        "the library tokenizers, would read it as a control token. Remove the marker or the row.")
    names = {content: NAME.format(number) for number, content in enumerate(controls(tokenizer).ids)}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:  # of a unigram model: pairs of piece and score
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & set(names)]
    state["post_processor"] = state["truncation"] = state["padding"] = None
    return Tokenizer.from_str(json.dumps(state))
