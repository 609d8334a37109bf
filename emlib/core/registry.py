"""The registry of defenses: maps the `kind` in a profile to its class.

A class is registered when it is defined. Importing `HOME` defines ours; importing the entry points of the group of the
same name defines those of other distributions. The first look-up imports both, so that this module imports neither.
Classes of a notebook's cells and of plugin files are registered when these run.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from emlib.core.digests import of_text
from emlib.core.schema import kind_of
from emlib.core.source import CELL, attributes_of, rest_of_file, source_of, used_of_cells

HOME = "emlib.defenses"  # the package of our defenses, and the entry point group of others
DefenseClass = type[Any]  # a subclass of Defense, which stands above: it registers its subclasses here
Purpose = Literal["fine-tuning", "grpo"]
_classes: dict[str, DefenseClass] = {}
_texts: dict[DefenseClass, str] = {}  # of those that are not ours, as they were when they were defined
_attributes: dict[DefenseClass, dict[str, Any]] = {}  # the same


def enter(cls: DefenseClass) -> None:
    """Register a class under its kind, replacing an earlier definition of the same class.

    Raises:
        ValueError: another class has this kind.
    """
    kind = kind_of(cls)
    if kind is None:
        return  # a base class
    if not is_ours(cls):
        _texts[cls] = source_of(cls) + ("" if cls.__module__ == CELL else rest_of_file(cls))
        _attributes[cls] = attributes_of(cls)
    known = _classes.get(kind)
    if cls.listed and known is not None and not _may_replace(cls, known):
        raise ValueError(f"the kind '{kind}' is defined twice: in {known.__module__} and in {cls.__module__}. Rename "
                         "one of them; or, if keep() wrote one from the other, call keep() again.")
    if cls.listed:
        _classes[kind] = cls


def _may_replace(cls: DefenseClass, known: DefenseClass) -> bool:
    """Return whether `cls` is from the module of `known`, replaces a plugin from a cell, or has the same text."""
    if known.__module__ == cls.__module__:
        return True
    foreign = not is_ours(known) and not is_ours(cls)
    return foreign and (cls.__module__ == CELL or source_digest(known) == source_digest(cls))


def is_ours(cls: DefenseClass) -> bool:
    """Return whether a class is in the package of our defenses; its keys hold its version instead of its source."""
    return cls.__module__.startswith(f"{HOME}.")


def source_digest(cls: DefenseClass) -> str | None:
    """Return the SHA-256 of a class's source text at the time of its definition; None for ours.

    The text includes the rest of the class's file but imports, or what it uses of the notebook's cells as it is now.
    """
    if cls not in _texts:
        return None
    text = _texts[cls] + (used_of_cells(cls, _texts[cls], _attributes[cls]) if cls.__module__ == CELL else "")
    return of_text(text)


def kinds(purpose: Purpose = "fine-tuning") -> dict[str, DefenseClass]:
    """Return the class of each kind that works for a purpose, ours first."""
    _load()
    if purpose == "fine-tuning":
        return dict(_classes)
    return {kind: cls.in_grpo for kind, cls in _classes.items() if cls.in_grpo is not None}


def label_of_kind(kind: str) -> str:
    """Return the label of a kind in tables and figures; empty for an unknown kind or one without a label."""
    cls = kinds().get(kind)
    return "" if cls is None else cls.label


def swept_by_kind(kind: str) -> str:
    """Return the option of a kind that a sweep varies; empty for an unknown kind or one without such an option."""
    cls = kinds().get(kind)
    return "" if cls is None else cls.swept or ""


@cache
def _load() -> None:
    importlib.import_module(HOME)
    for point in entry_points(group=HOME):
        point.load()
