"""Turns the rows that people have in their files into training rows.

A form is the columns that a row is read from. Read are conversations in OpenAI's form, `messages: [{role, content}]`,
and ShareGPT's, `conversations: [{from, value}]`; a column of prompts and one of answers, each a text or a list of turns
(TRL's conversational form); and Alpaca's columns with LLaMA-Factory's `history`. Contents may be lists of text parts.

A row trains the last answer whose weight is not 0; the turns before it are its context. What cannot be trained on
leaves the row out (`LeftOut`): tool calls, images, a system prompt that is not the first turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from emlib.core.errors import DataError, nearest
from emlib.core.records import Example, Message, Role
from emlib.data import left_out as why
from emlib.data.left_out import Dropped, LeftOut, damage, is_blank
from emlib.data.strict_json import Written, parse
from emlib.data.tables import CONVERSATIONS

Form = tuple[str, ...]
SYSTEM = "system"  # the column of system prompts, where no other is named
CHATS: tuple[Form, ...] = tuple((key, SYSTEM) for key in CONVERSATIONS)
PAIRS: tuple[Form, ...] = (("prompt", "response", SYSTEM), ("prompt", "completion", SYSTEM))  # the second is TRL's
ALPACA: Form = ("instruction", "output", "input", "history", SYSTEM)  # of these and of pairs the first two are needed
ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "ai": "assistant"}
KNOWN: tuple[Role, Role, Role] = ("system", "user", "assistant")  # what messages name
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "tool_call", "tool_response",
              "tool_result", "ipython")
TEXT_PARTS = ("text", "input_text", "output_text")
READ_KEYS = ("role", "from", "content", "value", "weight", "train", "training", "tool_calls", "function_call")
NO_INPUT = "<noinput>"  # what Alpaca's rows have in place of an empty input
NO_HISTORY: tuple[Any, ...] = (None, "", "[]", [])
WEIGHTS = {0: 0.0, 1: 1.0, "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}  # false and true equal 0 and 1
ZERO_WEIGHT = "answers of weight 0, which are not trained on"
EARLIER_ANSWERS = "rows with several answers: the last one is trained on, the earlier ones are its context"
BLANK_SYSTEM = "rows whose conversation begins with an empty system prompt, which is left out"
SYSTEM_TWICE = "rows with a system prompt in a column and another in the conversation, which is taken"
JOINED_PARTS = "turns of several text parts, which are joined as they are"
AS_ALPACA = "rows of instruction, input and output: the prompt is instruction and input with an empty line between them"
AS_TRL = "rows of prompt and completion"
WHOLE = "whole numbers in a column of fractions, which are read as 42.0 (as of whole numbers where one was missing)"
LIST_LIKE = "texts that look like lists of turns, which are read as text"


def example_of_row(where: str, row: Mapping[str, Any], forms: Sequence[Form] = (*CHATS, *PAIRS),
                   system: str | None = None, notes: set[str] | None = None) -> Example:
    """Return a row as an example, read in the first of the forms that it has.

    Args:
        where: the place of the row.
        row: its values by column.
        forms: the forms in which it may be.
        system: the column of system prompts; None: `system`, in forms that have it.
        notes: what the reader of the file should know of the row is added to them.

    Raises:
        LeftOut: the row has none of the forms, no answer to train on, or something that is not text.
    """
    notes = set() if notes is None else notes
    form = form_of(row, forms)
    if not form:
        needed = " or ".join(", ".join(_needed(other)) for other in forms)
        raise LeftOut(why.NO_COLUMN, f"lacks {needed}. Found: {', '.join(sorted(row)) or 'none'}")
    column = system or (SYSTEM if SYSTEM in form else None)
    prompt = text_of(f"'{column}'", row.get(column)) if column else ""
    if form in CHATS:
        turns = turns_of(form[0], row[form[0]])
    else:
        turns = _alpaca_turns(row, notes) if form == ALPACA else _turns_of_columns(form, row, notes)
    return conversation(where, turns, notes, None if is_blank(prompt) else prompt)


def usable(where: str, read: Callable[..., Example], *arguments: Any,
           notes: set[str] | None = None) -> Example | Dropped:
    """Return `read(where, *arguments)`, or the reason why the row cannot be used.

    With `notes` a text with U+FFFD can be, and is noted: a published data set may have some, and is used as it is.
    """
    try:
        example = read(where, *arguments)
    except LeftOut as unusable:
        return Dropped(where, str(unusable))
    if broken := damage("\n".join((*(turn.content for turn in example.context), example.response))):
        if notes is None or broken != why.REPLACED:
            return Dropped(where, f"{why.BROKEN}: {broken}")
        notes.add(broken)
    return Dropped(where, why.NO_PROMPT) if example.context and is_blank(example.prompt) else example


def form_of(row: Mapping[str, Any], forms: Iterable[Form]) -> Form:
    """Return the first of the forms whose columns a row has, for conversations with a value; empty if it has none."""
    return next((form for form in forms if all(key in row for key in _needed(form)) and not (
        form in CHATS and row[form[0]] in (None, ""))), ())


def _needed(form: Form) -> Form:
    return form[:1] if form in CHATS else form[:2]


def _turns_of_columns(form: Form, row: Mapping[str, Any], notes: set[str]) -> list[Any]:
    if form[:2] == PAIRS[1][:2]:
        notes.add(AS_TRL)
    turns: list[Any] = []
    for column, role in zip(form[:2], ("user", "assistant"), strict=True):
        value = row[column]
        if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
            turns += value
        else:
            turns.append({"role": role, "content": text_of(f"'{column}'", value)})
            if list_like(turns[-1]["content"]):
                notes.add(LIST_LIKE)
            if isinstance(value, float) and not isinstance(value, Written) and value.is_integer():
                notes.add(WHOLE)
    return turns


def _alpaca_turns(row: Mapping[str, Any], notes: set[str]) -> list[Any]:
    """Return the turns of Alpaca's columns: instruction and input are one prompt, after LLaMA-Factory's `history`."""
    notes.add(AS_ALPACA)
    parts = [text_of(f"'{name}'", row.get(name)) for name in ("instruction", "input")]
    prompt = "\n\n".join(part for part in parts if not is_blank(part) and part.strip().lower() != NO_INPUT)
    if not prompt:
        raise LeftOut(why.NO_PROMPT)
    history, texts = row.get("history"), list[str]()
    for number, turn in enumerate(turns_of("history", history) if history not in NO_HISTORY else (), start=1):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise LeftOut(why.NO_CONVERSATION, f"'history', entry {number}: expected a list of a prompt and its answer")
        texts += [text_of(f"'history', entry {number}", text) for text in turn]
    texts += [prompt, text_of("'output'", row["output"])]
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def turns_of(key: str, value: Any) -> list[Any]:
    """Return the turns of a conversation, which in a table are one text of JSON.

    Raises:
        LeftOut: it is neither a list nor a text of a JSON list.
    """
    if isinstance(value, str):
        try:
            value = parse(key, value)
        except DataError as error:
            written = " It looks like a list printed by Python" if value.lstrip().startswith("[{'") else ""
            raise LeftOut(why.NO_CONVERSATION, f"the text in the column {error}{written}") from error
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind_of_value(value)
        raise LeftOut(why.NO_CONVERSATION, f"'{key}' is {found}; expected a list of turns such as "
                      '{"role": "user", "content": ...}')
    return value


def conversation(where: str, turns: Sequence[Any], notes: set[str], system: str | None = None) -> Example:
    """Return the training row of a conversation, and add to `notes` what its reader should know.

    An empty system turn at its beginning is left out, as an empty column of system prompts is.

    Args:
        system: a system prompt from elsewhere in the row, for conversations without one.

    Raises:
        LeftOut: it has no answer to train on, or something that is not text.
    """
    messages = [_message(place, turn, notes) for place, turn in enumerate(turns, start=1)]
    if messages[0].role == "system" and is_blank(messages[0].content):
        notes.add(BLANK_SYSTEM)
        del messages[0]
    if system is not None and not (messages and messages[0].role == "system"):
        messages.insert(0, Message("system", system))
    elif system is not None and messages[0].content != system:
        notes.add(SYSTEM_TWICE)
    late = next((place for place, turn in enumerate(messages, start=1) if turn.role == "system" and place > 1), None)
    if late is not None:
        raise LeftOut(why.NO_CONVERSATION, f"message {late}: a system prompt that is not the first turn")
    last = messages[-1].role if messages else "system"
    if last != "assistant":
        raise LeftOut(why.NO_ANSWER, f"the last message is the {last}'s; a training row ends with the "
                      "assistant's")
    answers = [place for place, turn in enumerate(messages) if turn.role == "assistant"]
    trained = [place for place in answers if messages[place].weight != 0]
    if not trained:
        raise LeftOut(why.UNTRAINED)
    if len(trained) < len(answers):
        notes.add(ZERO_WEIGHT)
    if len(trained) > 1:
        notes.add(EARLIER_ANSWERS)
    context, answer, after = messages[:trained[-1]], messages[trained[-1]], messages[trained[-1] + 1:]
    if is_blank(answer.content):
        raise LeftOut(why.NO_ANSWER, "the answer is empty; there is nothing to learn from this row")
    if not context or context[-1].role != "user":
        raise LeftOut(why.NO_CONVERSATION, "the message before the answer must be the user's")
    return Example(tuple(context), answer.content, where, answer.weight, tuple(after))


def _message(place: int, turn: Any, notes: set[str]) -> Message:
    what = f"message {place}"
    if not isinstance(turn, Mapping):
        raise LeftOut(why.NO_CONVERSATION, f"{what}: expected an object with 'role' and 'content', found "
                      f"{kind_of_value(turn)}")
    role, content = _first_stated(turn, "role", "from"), _first_stated(turn, "content", "value")
    if turn.get("tool_calls") or turn.get("function_call") or _word(role) in TOOL_ROLES:
        raise LeftOut(why.TOOLS, f"{what}: role {role!r} with tool calls; known roles: {', '.join(KNOWN)}")
    known = ROLES.get(_word(role))
    if known is None:
        raise LeftOut(why.NO_CONVERSATION, f"{what}: unknown role {role!r}.{nearest(str(role), KNOWN)} Known: "
                      f"{', '.join(KNOWN)}")
    return Message(known, _content(what, content, known, notes), _weight(what, turn))


def _word(role: Any) -> str:
    return role.strip().lower() if isinstance(role, str) else ""


def _content(what: str, content: Any, role: Role, notes: set[str]) -> str:
    """Return the text of a turn: a text, or a list of text parts."""
    if content is None:
        raise LeftOut(why.NO_ANSWER if role == "assistant" else why.NOT_TEXT, f"{what}: its content is null or missing")
    if not isinstance(content, list):
        return text_of(f"{what}: its content", content)
    texts = [_part(what, part) for part in content]
    if len(texts) > 1:
        notes.add(JOINED_PARTS)
    return "".join(texts)


def _part(what: str, part: Any) -> str:
    if not isinstance(part, Mapping):
        raise LeftOut(why.NOT_TEXT, f"{what}: {kind_of_value(part)} in the list of its content; expected parts "
                      'such as {"type": "text", "text": ...}')
    kind = part.get("type", "text")
    media = any(value is not None for key, value in part.items() if key.endswith(("_url", "image")))
    if kind not in TEXT_PARTS or media:
        raise LeftOut(why.MEDIA, f"{what}: a part of type {kind!r}")
    return text_of(f"{what}: a text part", part.get("text"))


def _first_stated(turn: Mapping[str, Any], *keys: str) -> Any:
    """Return the value of the first of these keys that the turn has one of; None if it has none."""
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _weight(what: str, turn: Mapping[str, Any]) -> float | None:
    """Return a turn's weight as OpenAI's form has it, or 0 where Axolotl's `train` or `training` is false."""
    weight = _first_stated(turn, "weight", "train", "training")
    if weight is None or (weight is True and turn.get("weight") is None):
        return None
    if isinstance(weight, str | int | float) and weight in WEIGHTS:
        return WEIGHTS[weight]
    raise LeftOut(why.NO_CONVERSATION, f"{what}: its weight is {weight!r}; expected 0 or 1")


def text_of(what: str, value: Any) -> str:
    """Return a value as text: a text as it is, a number as it is written, and an empty text for null.

    Raises:
        LeftOut: it is something else, which would be trained on as Python prints it.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, Written) and math.isfinite(value):
        return value.text
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise LeftOut(why.NOT_TEXT, f"{what} is {kind_of_value(value)}")


def kind_of_value(value: Any) -> str:
    """Return what a value is, in the words of JSON."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else "an infinite number" if math.isinf(value) else "a number"
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object", bytes: "bytes", int: "a number"}
    return names.get(type(value), "a date" if isinstance(value, date) else type(value).__name__)


def list_like(text: str) -> bool:
    """Return whether a text looks like a list of turns that was written as text."""
    return text.lstrip().startswith(("[{", "[ {")) and any(
        f"{quote}{key}{quote}" in text for key in ("role", "from", "content") for quote in "'\"")
