"""Which columns of the user's file hold the conversation, and how one row of it becomes a training row.

Tried in this order: a conversation (`messages`, ShareGPT's `conversations`), the columns that the profile names, and,
where it names none of its own, TRL's `prompt` and `completion` and Alpaca's `instruction`, `input` and `output`. A
prompt or an answer may be a list of turns (TRL's conversational form).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from emlib.config import Own
from emlib.core.records import Example, Message
from emlib.data.conversations import (
    READ_KEYS,
    alpaca_context,
    conversation,
    conversation_key,
    list_like,
    system_of,
    text_of,
    turns_of,
)
from emlib.data.left_out import NO_ANSWER, NO_COLUMN, NO_PROMPT, NOT_TEXT, LeftOut, is_blank
from emlib.data.tables import CONVERSATIONS, Row

PROMPT, RESPONSE = "prompt", "response"  # the names that a profile has by default
ALPACA = ("instruction", "input", "output")
HISTORY = "history"  # LLaMA-Factory's column beside Alpaca's: earlier prompts and answers
TRL, SYSTEM = "completion", "system"
MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
AS_ALPACA = "rows of instruction, input and output: the prompt is instruction and input with an empty line between them"
AS_TRL = "rows of prompt and completion"
LIST_LIKE = "texts that look like lists of turns, which are read as text"


def known_columns(own: Own) -> Collection[str]:
    """Return the columns that a row may be read from; no other is looked at."""
    named = {own.prompt, own.response} | ({own.system} if own.system else set())
    return named | {*CONVERSATIONS, SYSTEM} | ({TRL, *ALPACA, HISTORY} if _by_default(own) else set())


def _by_default(own: Own) -> bool:
    return (own.prompt, own.response) == (PROMPT, RESPONSE)


def column_of(own: Own, option: str) -> str:
    """Return the column that an option of the profile names: `prompt`, `response` or `system`."""
    return {"prompt": own.prompt, "response": own.response, "system": str(own.system)}[option]


class Reader:
    """Reads the rows of one file, and knows which columns it has seen in any of them."""

    def __init__(self, own: Own) -> None:
        self.own, self.known = own, known_columns(own)
        self._seen: set[str] = set()
        self._lacking: list[str] = []  # the options whose columns some row lacked

    def example(self, row: Row, notes: set[str]) -> Example:
        """Return a row as an example, and add to `notes` what its reader should know.

        Raises:
            LeftOut: the row cannot be trained on.
        """
        values = row.values
        self._seen |= values.keys() & self.known
        key = conversation_key(values)
        if key is not None:
            turns = turns_of(key, values[key])
            return conversation(row.where, turns, notes, self._system(values))
        form = self._form(values)
        if form is None:
            lacking = self.missing(tuple(values)) or PROMPT
            self._lacking.append(lacking)
            raise LeftOut(NO_COLUMN, f"no column '{column_of(self.own, lacking)}'")
        if form == ALPACA:
            notes.add(AS_ALPACA)
            answer = text_of("the answer", values[ALPACA[2]])
            if is_blank(answer):
                raise LeftOut(NO_ANSWER)
            return Example(alpaca_context(values, self._system(values)), answer, row.where)
        notes |= {AS_TRL} if form[1] == TRL else set()
        return self._joined(row.where, values[form[0]], values[form[1]], notes, self._system(values))

    def missing(self, columns: Collection[str]) -> str | None:
        """Return the option whose column is not among these, `prompt`, `response` or `system`; None if all are."""
        found = dict.fromkeys(columns, "")
        conversations = any(key in found for key in CONVERSATIONS)
        if not conversations and self._form(found) is None:
            return "prompt" if self.own.prompt not in found else "response"
        return "system" if self.own.system and self.own.system not in found else None

    def never_seen(self) -> str | None:
        """Return the option whose column no row of the file had; None if every one that was looked for was there."""
        if self._lacking and not self._seen & set(CONVERSATIONS) and self._form(dict.fromkeys(self._seen, "")) is None:
            return self._lacking[0]
        return "system" if self.own.system and self.own.system not in self._seen else None

    def unread(self, values: Mapping[str, Any]) -> Iterator[str]:
        """Yield the columns of a row, and the keys of its turns, that have a value and are not read."""
        key = conversation_key(values)
        form = self._form(values) or tuple(self.known)
        used = {self.own.system, *((key, SYSTEM) if key is not None else
                                   (*ALPACA, HISTORY, SYSTEM) if form == ALPACA else form)}
        yield from (name for name, value in values.items() if name not in used and value not in (None, ""))
        for turn in values[key] if key is not None and isinstance(values[key], list) else ():
            if isinstance(turn, Mapping):
                yield from (f"{key}[].{name}" for name, value in turn.items()
                            if name not in READ_KEYS and value is not None)

    def _form(self, values: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return the columns that a row is read from; None if it has no known ones."""
        named = (self.own.prompt, self.own.response)
        default = ((PROMPT, TRL), (ALPACA[0], ALPACA[2])) if _by_default(self.own) else ()
        found = next((form for form in (named, *default) if all(name in values for name in form)), None)
        return ALPACA if found == (ALPACA[0], ALPACA[2]) and found != named else found

    def _system(self, values: Mapping[str, Any]) -> str | None:
        """Return the row's system prompt; a blank one is none, and one row without it stops nothing."""
        named = conversation_key(values) is not None or self._form(values) == ALPACA
        name = self.own.system or (SYSTEM if named else None)
        return system_of(values, name) if name else None

    def _joined(self, where: str, prompt: Any, response: Any, notes: set[str], system: str | None) -> Example:
        """Return the example of a prompt and an answer, each a text or a list of turns."""
        if not (isinstance(prompt, list) or isinstance(response, list)):
            texts = text_of("the prompt", prompt), text_of("the answer", response)
            if is_blank(texts[0]):
                raise LeftOut(NO_PROMPT)
            if is_blank(texts[1]):
                raise LeftOut(NO_ANSWER)
            notes |= {LIST_LIKE} if any(map(list_like, texts)) else set()
            context = ([Message("system", system)] if system else []) + [Message("user", texts[0])]
            return Example(tuple(context), texts[1], where)
        asked, answered = (value if isinstance(value, list) else [{"role": role, "content": text_of(what, value)}]
                           for what, role, value in (("the prompt", "user", prompt),
                                                     ("the answer", "assistant", response)))
        if any(not isinstance(turn, Mapping) for turn in (*asked, *answered)):
            what = "the prompt" if any(not isinstance(turn, Mapping) for turn in asked) else "the answer"
            raise LeftOut(NOT_TEXT, f"{what} is a list")
        return conversation(where, [*asked, *answered], notes, system)
