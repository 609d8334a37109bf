"""Renders chat templates: the one place that does, for training, prompts, judges and scoring alike.

What a profile says of its model's template (`model.template`) is written into the template itself, as statements before
it. So it goes wherever the tokenizer goes: to other processes, to TRL, and into what is exported. The date that it may
print is fixed, so that a model is asked and trained alike on every day.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from types import FrameType
from typing import TYPE_CHECKING, Any

from emlib.config import ChatTemplate
from emlib.config.models import DATE, DATED
from emlib.core.errors import DataError, EmlibError, SourceError, nearest
from emlib.core.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIRECTIVES = "aAbBcdDeFHIjmMpRSTUwWxXyYZ"  # of strftime that depend on the date alone, or on midnight
SECONDS = 10.0  # what a template may take for a chat of two turns; real ones take milliseconds
ANY_WORD = re.compile(r"[^\W\d]\w*")
PROBE = (Message("system", "emlib system"), Message("user", "emlib user"))
ANSWERED = Message("assistant", "emlib answer")

# In front of the first user turn, as Gemma's and Mistral's own documentation does it.
MERGE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set merging = namespace(turns=[], system=messages[0]['content']) %}"
    "{% for turn in messages[1:] %}"
    "{% if turn['role'] == 'user' and merging.system %}"
    "{% set merging.turns = merging.turns + ["
    "{'role': 'user', 'content': merging.system + '\\n\\n' + turn['content']}] %}"
    "{% set merging.system = '' %}"
    "{% else %}{% set merging.turns = merging.turns + [turn] %}{% endif %}"
    "{% endfor %}"
    "{% set messages = merging.turns %}"
    "{% endif %}")


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, ask: bool) -> str:
    """Return the chat template's text; with `ask` it ends where the assistant's answer begins.

    Raises:
        DataError: the template refuses the chat or fails.
    """
    turns = [message.to_dict() for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask))
    except EmlibError:  # it took too long
        raise
    except Exception as error:  # a template is a program of somebody else's: it may fail in any way
        roles = ", ".join(message.role for message in messages)
        raise DataError(f"this tokenizer's chat template refuses the turns {roles}: "
                        f"{error or type(error).__name__}") from error


def configure(tokenizer: PreTrainedTokenizerBase, settings: ChatTemplate, name: str) -> PreTrainedTokenizerBase:
    """Write a profile's settings into the tokenizer's chat template; return the tokenizer.

    Raises:
        SourceError: there is no template, or it does not know an option or a date.
    """
    try:
        text = tokenizer.get_chat_template()
    except ValueError as error:
        raise SourceError(f"{name}: the tokenizer has no chat template; the study needs a chat model.") from error
    before = _preamble(text, settings, name)
    if before:
        tokenizer.chat_template = f"{before}\n{text}"  # Jinja drops the newline after a statement
    return tokenizer


def _preamble(text: str, settings: ChatTemplate, name: str) -> str:
    """Return the statements that stand before a template: the options, the fixed date, and the merged system prompt."""
    words = set(ANY_WORD.findall(text))
    unknown = [option for option in settings.options if option not in words]
    if unknown:
        raise SourceError(f"{name}: the chat template has no argument '{unknown[0]}' (model.template.options)."
                          f"{nearest(unknown[0], words)} Correct the name, or remove it.")
    dated = [word for word in DATED if word in words]
    if settings.date is not None and not dated:
        raise SourceError(f"{name}: the chat template prints no date. Remove model.template.date.")
    values: dict[str, Any] = dict(settings.options)
    parts = parts_of(settings.date or DATE)
    if "date_string" in dated:
        values["date_string"] = f"{parts['%d']} {parts['%b']} {parts['%Y']}"  # the form that Llama's templates use
    clock = ""
    if "strftime_now" in dated:
        replaced = "".join(f".replace('{directive}', '{printed}')" for directive, printed in parts.items())
        clock = f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}"
    sets = "".join(f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}" for name, value in values.items())
    return sets + clock + (MERGE if settings.system == "merge" else "")


def parts_of(day: date) -> dict[str, str]:
    """Return what each of strftime's directives prints for a day, at midnight; `%-d` is `%d` without a leading zero."""
    plain = {f"%{letter}": day.strftime(f"%{letter}") for letter in DIRECTIVES}
    short = {f"%-{letter}": plain[f"%{letter}"].lstrip("0") or "0" for letter in "dmyjHIMS"}
    return short | plain | {"%%": "%"}


def check(tokenizer: PreTrainedTokenizerBase, name: str, *, system: bool = True) -> None:
    """Refuse a template that refuses or loses a user's turn or, unless not `system`, a system prompt.

    Raises:
        SourceError: it does, with the way out; or it never ends.
    """
    with _time_limit(SECONDS, SourceError(
            f"{name}: the chat template does not finish within {SECONDS:g} seconds for a chat of one turn. Correct "
            "the template (chat_template in the tokenizer's files), or choose another model.")):
        asked = _rendered(tokenizer, name, PROBE[1:], "")
        if system:
            way_out = (" The study's questions and defenses use system prompts. Write `template: {system: merge}` "
                       "under `model` in the profile: it puts them in front of the first user turn, in training and "
                       "evaluation alike.")
            merged = _rendered(tokenizer, name, PROBE, way_out)
            if merged == asked:
                raise SourceError(f"{name}: the chat template drops the system prompt.{way_out}")
            _rendered(tokenizer, name, (*PROBE, ANSWERED), way_out)  # Mistral's writes it before the last turn alone


def _rendered(tokenizer: PreTrainedTokenizerBase, name: str, turns: Sequence[Message], way_out: str) -> str:
    try:
        text = render(tokenizer, turns, ask=turns[-1].role == "user")
    except DataError as error:
        raise SourceError(f"{name}: {error}.{way_out}") from error
    for turn in turns:
        if turn is not ANSWERED and turn.content not in text:
            after = " once it is answered, so that training would not see it" if turns[-1] is ANSWERED else ""
            raise SourceError(f"{name}: the chat template drops the {turn.role} turn{after}.{way_out}")
    return text


@contextmanager
def _time_limit(seconds: float, late: EmlibError) -> Iterator[None]:
    """Raise `late` in the block as soon as its Python code has run for so many seconds."""
    end, before = time.monotonic() + seconds, sys.gettrace()

    def watch(_: FrameType, __: str, ___: Any) -> Any:
        if time.monotonic() > end:
            raise late
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
