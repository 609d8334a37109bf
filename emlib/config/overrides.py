"""Changes to a profile from outside its file: `seeds=[0,1,2] training.epochs=2 methods.kl.sweep=[0.1]`.

A key leads through sections by dots, and through a list by an item's name or number (from 0). Values are YAML. Sections
are merged, lists and single values replaced whole, as in a profile that extends another one; what comes out is checked
as the file is. A path is meant from the folder of the profile, as if it stood there.
"""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from emlib.config.profile import Profile, over, profile_path, read_profile, sound, whole
from emlib.core.errors import ProfileError, nearest

WHERE = "SET"
Changes = dict[str, Any]
OPENING, CLOSING, QUOTES = "[{", "]}", "\"'"


def overridden(name: str, text: str) -> tuple[Profile, Changes]:
    """The profile of that name with the changes of `text`, and these changes by key.

    Raises:
        ProfileError: the profile is not sound; or `text` is not: with SET, the key, the value, what is allowed and the
            nearest known key.
    """
    path = profile_path(name)
    data = read_profile(path)
    sound(data, str(path))  # so that every mistake found below is one of the changes
    changes = parsed(text)
    for key, value in changes.items():
        data = _put(data, key.split("."), value, key)
    return sound(whole(data, path), f"{WHERE} (over {path})"), changes


def parsed(text: str) -> Changes:
    """The assignments of a text, in its order.

    Raises:
        ProfileError: one is no `key=value`, its value is no YAML, or a key stands twice.
    """
    changes: Changes = {}
    for piece in _pieces(text):
        key, equals, value = piece.partition("=")
        if not equals or not re.fullmatch(r"[\w+-]+(\.[\w+-]+)*", key):
            raise ProfileError(f"{WHERE}: '{piece}' is no key=value, such as seeds=[0,1] or training.epochs=2. A value "
                               "with spaces stands in quotes or brackets.")
        if not value:
            raise ProfileError(f"{WHERE}: '{key}' has no value. To leave something out, say {key}=null.")
        if key in changes:
            raise ProfileError(f"{WHERE}: '{key}' stands twice.")
        try:
            changes[key] = YAML(typ="safe", pure=True).load(value)
        except YAMLError as error:
            reason = str(getattr(error, "problem", None) or error)
            raise ProfileError(f"{WHERE}: the value of '{key}' is not readable as YAML: {value} ({reason}).") from error
    return changes


def _pieces(text: str) -> list[str]:
    """The text cut at spaces that stand in no brackets and no quotes."""
    pieces, depth, quote = [""], 0, ""
    for letter in text.strip():
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        depth += 0 if quote else (letter in OPENING) - (letter in CLOSING)
        if letter.isspace() and depth <= 0 and not quote:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece for piece in pieces if piece]


def _put(data: Any, keys: list[str], value: Any, whole: str) -> Any:
    """`data` with `value` at the place that `keys` lead to."""
    key, *rest = keys
    if isinstance(data, list):
        place = _place(data, key, whole)
        return [*data[:place], _put(data[place], rest, value, whole) if rest else over(data[place], value),
                *data[place + 1:]]
    if data is not None and not isinstance(data, dict):
        raise ProfileError(f"{WHERE}: '{whole}' leads into a single value, {data!r}, where there is no '{key}'.")
    section = data or {}
    return section | {key: _put(section.get(key), rest, value, whole) if rest else over(section.get(key), value)}


def _place(items: list[Any], key: str, whole: str) -> int:
    """Which item of a list a key means: the one of that name, or the one with that number."""
    names = [str(item.get("name")) if isinstance(item, dict) else str(item) for item in items]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    known = [name for name in names if name != "None"]
    raise ProfileError(f"{WHERE}: '{whole}' asks for '{key}' of a list of {len(items)}.{nearest(key, known)} It has: "
                       f"{', '.join(known) or ', '.join(map(str, range(len(items))))}.")
