"""The source text of a class, also of one that was defined in a notebook's cell."""

from __future__ import annotations

import ast
import linecache
import textwrap
from collections.abc import Iterator
from types import FunctionType

CELL = "__main__"  # the module of what a notebook's cells define


def source_of(cls: type) -> str:
    """The text of a class's definition, with its decorators, flush left.

    It is found through the class's own functions: they know their file, or their cell, whose text Python keeps for
    tracebacks. `inspect.getsource` finds no class of a cell.

    Raises:
        ValueError: the text is nowhere, or the class has no function of its own.
    """
    for function in functions_of(cls):
        linecache.checkcache(function.__code__.co_filename)  # a plugin may have changed since it was last read
        text = "".join(linecache.getlines(function.__code__.co_filename))
        line = function.__code__.co_firstlineno
        found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)
                 and node.name == cls.__name__ and node.lineno <= line <= (node.end_lineno or 0)]
        if found:
            first = min([found[-1].lineno, *(decorator.lineno for decorator in found[-1].decorator_list)])
            return textwrap.dedent("\n".join(text.splitlines()[first - 1:found[-1].end_lineno])) + "\n"
    raise ValueError(f"the source of {cls.__name__} cannot be found: define it in a cell or a file, with a method of "
                     "its own")


def functions_of(cls: type) -> Iterator[FunctionType]:
    """The functions that stand in a class's body, those of properties and class methods included."""
    for member in vars(cls).values():
        found = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        if isinstance(found, FunctionType) and found.__qualname__.startswith(f"{cls.__qualname__}."):
            yield found
