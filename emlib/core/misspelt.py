"""Misspelt hooks of a defense: Python would never call them, and the training would go on without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any

from emlib.core.errors import nearest
from emlib.core.source import functions_of

ALIKE = 0.8  # share of common letters of a misspelt name: `penality` has 0.93, but `layers` only 0.67 of `reads_layers`


def refuse_misspelt(cls: type[Any], base: type[Any]) -> None:
    """Refuse a class with a public name that is near one of `base` which the class does not have itself.

    A name that the class reads as an attribute is a helper: a misspelt hook is never read.

    Raises:
        ValueError: it has one; the message names both.
    """
    own = {name for each in cls.__mro__[:cls.__mro__.index(base)] for name in vars(each)} | set(cls.model_fields)
    left = [name for name in vars(base) if not name.startswith("_") and name not in own]
    read = set[str]().union(*(_read_by(function.__code__) for each in cls.__mro__ if each.__module__ == cls.__module__
                              for function in functions_of(each)))
    for name in _added(cls, base):
        if name not in read and (near := nearest(name, left, ALIKE)):
            raise ValueError(f"{cls.__name__} defines '{name}', which is no hook and no option, and which it does not "
                             f"use itself.{near} Rename it; the name of a helper may begin with an underscore: "
                             f"'_{name}'.")


def _read_by(code: CodeType) -> set[str]:
    """Return the names that a function reads, those of attributes among them, also in functions inside it."""
    inner = (_read_by(one) for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*inner)


def near_hook(cls: type[Any], hooks: Sequence[str]) -> str:
    """Return ` Did you mean 'x'?` with the hook that a public name of a class may mean, or an empty text."""
    base = next(each for each in cls.__mro__ if each.__module__ == "emlib.core.defense")
    found = ((name, nearest(name, hooks)) for name in _added(cls, base))
    return next((f" It has '{name}'.{near}" for name, near in found if near), "")


def _added(cls: type[Any], base: type[Any]) -> Iterator[str]:
    """Yield the public names that a class's file adds to those of `base` and of classes elsewhere, without options."""
    for each in cls.__mro__:
        if each.__module__ == cls.__module__:
            yield from (name for name in vars(each)
                        if not name.startswith("_") and not hasattr(base, name) and name not in cls.model_fields)
