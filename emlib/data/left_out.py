"""Rows that cannot be used: each is left out with a reason, and the reasons are counted."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

NO_ANSWER, NO_PROMPT, BROKEN = "no answer", "no prompt", "broken characters"
NO_CONVERSATION, NOT_TEXT, NO_COLUMN = "not a conversation", "not text", "no such column"
TOOLS, MEDIA, UNTRAINED = "tool calls", "images or other parts that are not text", "weight 0 on every answer"
MORE_CELLS, DEEP, LONG_NUMBER = "more cells than the header", "nested too deeply", "a number of over 1,000 digits"
HEADER_AGAIN = "the header once more, as in tables that were appended to each other"
SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"  # what decoders insert for invalid bytes
REPLACED = "U+FFFD, which decoders insert for invalid bytes"


class LeftOut(Exception):
    """A row cannot be used: the reason, as it is counted, and perhaps what exactly was found at which place in it."""

    def __str__(self) -> str:
        return ": ".join(self.args)


@dataclass(frozen=True)
class Dropped:
    """An unusable row, with the reason; what follows a colon in it is this row's detail and is not counted apart."""

    where: str
    reason: str

    @property
    def counted_as(self) -> str:
        """The reason without this row's detail."""
        return self.reason.partition(":")[0]


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: white space, and characters without width such as U+200B, alone."""
    rest = text.strip()
    return not rest or (not rest.isascii() and all(
        letter.isspace() or unicodedata.category(letter) == "Cf" for letter in rest))


def damage(text: str) -> str:
    """Return which character of a text only a damaged text has; an empty text if there is none."""
    if "\0" in text:
        return "a zero byte (NUL)"
    if text.isascii():
        return ""
    if has_surrogates(text):
        return "half of a character that takes two (a lone surrogate)"
    return REPLACED if REPLACEMENT in text else ""


def has_surrogates(text: str) -> bool:
    """Return whether a text has a surrogate without its other half, which no tokenizer takes and no file holds."""
    return SURROGATE.search(text) is not None
