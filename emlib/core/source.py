"""The source text of a class, including one that a notebook's cell defines."""

from __future__ import annotations

import ast
import linecache
import textwrap
from collections.abc import Iterator
from types import FunctionType

CELL = "__main__"  # the module of classes that a notebook's cells define


def source_of(cls: type) -> str:
    """Return the text of a class's definition, with its decorators, dedented.

    Finds it through the functions of the class: they know their file, or their cell, whose text Python keeps for
    tracebacks. `inspect.getsource` does not find classes of a cell.

    Raises:
        ValueError: the text is not found, or the class defines no function.
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
    raise ValueError(f"the source of {cls.__name__} cannot be found: define it in a cell or a file, with at least "
                     "one method")


def functions_of(cls: type) -> Iterator[FunctionType]:
    """Yield the functions that a class's body defines, including those of properties and class methods."""
    for member in vars(cls).values():
        found = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        if isinstance(found, FunctionType) and found.__qualname__.startswith(f"{cls.__qualname__}."):
            yield found
