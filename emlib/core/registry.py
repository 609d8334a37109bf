"""Kinds of defense by name: where the `kind` in a profile finds its class.

A class enters when it is defined. Ours are defined by importing `HOME`, those of other distributions by importing what
they name under the entry point group of the same name. Both are imported when a kind is first looked up, so that this
module imports nothing. Classes of a notebook's cells and of plugin files enter when they are run.
"""

from __future__ import annotations

import hashlib
import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal, get_args

from emlib.core.source import CELL, source_of

if TYPE_CHECKING:
    from emlib.core.defense import Defense

HOME = "emlib.defenses"  # the package of our own defenses, and the entry point group of others
Purpose = Literal["fine-tuning", "grpo"]
_classes: dict[str, type[Defense]] = {}
_digests: dict[type[Defense], str | None] = {}


def enter(cls: type[Defense]) -> None:
    """Make a class known under its kind, in the place of an earlier definition of it.

    Raises:
        ValueError: the kind is another class's.
    """
    kind = kind_of(cls)
    if kind is None:
        return  # a base class
    _digests[cls] = None if is_ours(cls) else hashlib.sha256(source_of(cls).encode()).hexdigest()
    known = _classes.get(kind)
    if cls.listed and known is not None and not _may_replace(cls, known):
        raise ValueError(f"the kind '{kind}' is defined twice: in {known.__module__} and in {cls.__module__}. Rename "
                         "one of them; or, where one was kept from the other, keep it again.")
    if cls.listed:
        _classes[kind] = cls


def _may_replace(cls: type[Defense], known: type[Defense]) -> bool:
    """Whether a second definition is of the same module, from a cell in the place of a plugin's, or the same text."""
    if known.__module__ == cls.__module__:
        return True
    foreign = not is_ours(known) and not is_ours(cls)
    return foreign and (cls.__module__ == CELL or _digests[known] == _digests[cls])


def is_ours(cls: type[Defense]) -> bool:
    """Whether a class stands in the package of our own defenses: keys hold its version, and not its source."""
    return cls.__module__.startswith(f"{HOME}.")


def source_digest(cls: type[Defense]) -> str | None:
    """The SHA-256 of a class's source text as it was when it was defined; None for ours."""
    return _digests.get(cls)


def kind_of(cls: type[Defense]) -> str | None:
    """The kind that a class's first field fixes; None for a base class, which fixes none."""
    found = get_args(cls.model_fields["kind"].annotation)
    return str(found[0]) if found else None


def kinds(purpose: Purpose = "fine-tuning") -> dict[str, type[Defense]]:
    """The class of each kind that serves a purpose, ours first."""
    _load()
    if purpose == "fine-tuning":
        return dict(_classes)
    return {kind: cls.in_grpo for kind, cls in _classes.items() if cls.in_grpo is not None}


def label_of_kind(kind: str) -> str:
    """What tables and figures call a kind; empty where there is none of that name, or where it does not say."""
    cls = kinds().get(kind)
    return "" if cls is None else cls.label


@cache
def _load() -> None:
    importlib.import_module(HOME)
    for point in entry_points(group=HOME):
        point.load()
