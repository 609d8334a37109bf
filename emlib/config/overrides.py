"""Overrides of a profile from the command line: `seeds=[0,1,2] training.epochs=2 methods.kl.sweep=[0.1]`.

A key is a dotted path of sections, and of names or indices (from 0) of list items. Values are YAML. Sections are
merged, lists and single values are replaced, as in a profile that extends another one; the result is validated like a
file. A relative path refers to the folder of the profile.
"""

from __future__ import annotations

import re
from typing import Any

from emlib.config.loading import expanded, over, profile_path, read_profile, validated, without_price, without_removed
from emlib.config.profile import Profile
from emlib.core.errors import ProfileError, nearest, shortened
from emlib.core.plain_yaml import parse_yaml

WHERE = "SET"
Changes = dict[str, Any]
OPENING, CLOSING, QUOTES = "[{", "]}", "\"'"


def overridden(name: str, text: str) -> tuple[Profile, Changes]:
    """Load the profile `name` with the changes in `text`; return it and these changes by key.

    Raises:
        ProfileError: the profile is invalid, or `text` is: with SET, the key, the value, what is allowed and the
            nearest known key.
    """
    path = profile_path(name)
    data = read_profile(path)
    validated(data, str(path))  # so that every error below comes from the changes
    changes = parsed(text)
    for key, value in sorted(changes.items(), key=lambda change: change[0].endswith(".price")):  # after its model
        data = _put(data, key.split("."), value, key)
    return validated(expanded(data, path), f"{WHERE} (over {path})"), changes


def parsed(text: str) -> Changes:
    """Parse the assignments of a text, in order.

    Raises:
        ProfileError: an item is not `key=value`, its value is not YAML, or a key is given twice.
    """
    changes: Changes = {}
    for piece in _pieces(text):
        key, equals, value = piece.partition("=")
        if not equals or not re.fullmatch(r"[\w+-]+(\.[\w+-]+)*", key):
            raise ProfileError(f"{WHERE}: '{piece}' is not key=value, such as seeds=[0,1] or training.epochs=2. Put a "
                               "value with spaces into quotes or brackets.")
        if not value:
            raise ProfileError(f"{WHERE}: '{key}' has no value. To remove it, use {key}=null.")
        if key in changes:
            raise ProfileError(f"{WHERE}: '{key}' is given twice.")
        changes[key] = parse_yaml(value, f"{WHERE}, '{key}' is {shortened(value)}")
    return changes


def _pieces(text: str) -> list[str]:
    """Split the text at spaces outside brackets and quotes."""
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
    """Return `data` with `value` at the path `keys`; `whole` is the full key, for messages."""
    key, *rest = keys
    if isinstance(data, list):
        place = _place(data, key, whole)
        return [*data[:place], _put(data[place], rest, value, whole) if rest else over(data[place], value),
                *data[place + 1:]]
    if data is not None and not isinstance(data, dict):
        raise ProfileError(f"{WHERE}: '{whole}' leads into a single value, {data!r}, which has no '{key}'.")
    section = data or {}
    section = section if rest else without_price(section, {key: value})
    old = section.get(key)
    return section | {key: without_removed(key, old, _put(old, rest, value, whole)) if rest else over(old, value)}


def _place(items: list[Any], key: str, whole: str) -> int:
    """Return the index of the list item that a key means, by its name or its index."""
    names = [str(item.get("name")) if isinstance(item, dict) else str(item) for item in items]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    known = [name for name in names if name != "None"]
    raise ProfileError(f"{WHERE}: '{whole}' asks for '{key}' of a list of {len(items)}.{nearest(key, known)} It has: "
                       f"{', '.join(known) or ', '.join(map(str, range(len(items))))}.")
