"""The source text of a class, of the rest of its file, and of what it uses of a notebook's cells."""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import logging
import re
import symtable
import sys
import textwrap
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, get_origin

from emlib.core.digests import of_text
from emlib.core.errors import ProfileError

CELL = "__main__"  # the module of classes that a notebook's cells define
AS_WRITTEN = "_as_written"  # of a function that stands for a class's own: that one (`emlib.core.hook_errors`)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
PLAIN = (bool, int, float, complex, str, bytes, type(None))
STABLE = (range, slice, bytearray, Decimal, Fraction, date, time, timedelta)  # equal values have equal representations
WITHOUT_VALUE = (ModuleType, FunctionType, BuiltinFunctionType, type, logging.Logger)  # code elsewhere, or no effect


def source_of(cls: type) -> str:
    """Return the text of a class's definition, with its decorators, dedented.

    Finds it through the functions of the class: they know their file, or their cell, whose text Python keeps for
    tracebacks. `inspect.getsource` does not find classes of a cell.

    Raises:
        ValueError: the text is not found, or the class defines no function.
    """
    return _lines_of(*_found(cls))


def scope_of(cls: type) -> dict[str, Any]:
    """Return the global names of the file or the cells that define a class.

    Its methods know them. A decorator of another file may wrap a method, and a cell may have replaced them all since.
    """
    functions = (*functions_of(cls), *(value for value in vars(cls).values() if isinstance(value, FunctionType)))
    scopes = [inspect.unwrap(function).__globals__ for function in functions]
    return next((scope for scope in scopes if scope.get("__name__") == cls.__module__), scopes[0])


def _found(cls: type) -> tuple[ast.ClassDef, str]:
    """Return a class's definition, and the text of its file or cell."""
    for function in map(inspect.unwrap, functions_of(cls)):
        text, line = _text_around(function.__code__), function.__code__.co_firstlineno
        found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)
                 and node.name == cls.__name__ and node.lineno <= line <= (node.end_lineno or 0)]
        if found:
            return found[-1], text
    raise ValueError(f"the source of {cls.__name__} cannot be found: define it in a cell or a file, with at least "
                     "one method")


def functions_of(cls: type) -> Iterator[FunctionType]:
    """Yield the functions that a class's body defines, including those of properties and class methods."""
    for member in vars(cls).values():
        found = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        found = getattr(found, AS_WRITTEN, found)
        if isinstance(found, FunctionType) and found.__qualname__.startswith(f"{cls.__qualname__}."):
            yield found


def rest_of_file(cls: type) -> str:
    """Return the other statements of a class's file, in their order, but for imports, texts and `in_grpo`.

    What of them the class uses is not looked for: a function, a decorator or another class may change a value.
    """
    own, text = _found(cls)
    return "".join(_lines_of(statement, text) for statement in ast.parse(text).body
                   if not _is_left_out(statement) and statement.lineno != own.lineno)


def _is_left_out(statement: ast.stmt) -> bool:
    """Return whether no key holds a statement: an import, a text, or `in_grpo`, which says where a class acts."""
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Attribute) and target.attr == "in_grpo" for target in statement.targets)
    return isinstance(statement, ast.Import | ast.ImportFrom) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))


def used_of_cells(cls: type, text: str, before: Mapping[str, Any]) -> str:
    """Return what a cell's class uses that is defined in cells alone, directly or through one another, by name.

    These are the texts of functions and classes as they are now, and values, and the attributes of the class that are
    not as they were `before`, when it was defined. `text` is the class's own.

    Raises:
        ProfileError: it uses a value that has no text, so that a key would stay the same if it changed.
    """
    scope = scope_of(cls)
    found = {f"{cls.__name__}.{name}": _assigned(cls, name) for name, state in attributes_of(cls).items()
             if name not in before or _differ(before[name], state)}
    waiting = free_names("".join([text, *found.values()]), scope, cls.__name__)
    while waiting:
        name = waiting.pop()
        try:
            definition = None if name in found else _definition(name, scope[name])
        except _NoText as error:
            raise ProfileError(
                f"The defense {cls.__name__} uses {name}, and keys cannot contain {error}: if you changed it, the old "
                "results would be taken. Give it to the class as an option, make it inside a function, or import it "
                "from a file.") from None
        if definition is not None:
            found[name] = definition
            waiting |= free_names(definition, scope, cls.__name__)
    return "".join(found[name] for name in sorted(found))


def attributes_of(cls: type) -> dict[str, Any]:
    """Return what may be assigned to a class after its definition, by name: its text, or itself where it has none."""
    found: dict[str, Any] = {}
    for name, value in vars(cls).items():
        if not name.startswith(("__", "_abc_")) and name != "in_grpo":  # which says where it acts, and not what it does
            try:
                found[name] = _text_of(value)
            except _NoText:
                found[name] = value
    return found


def _differ(before: Any, now: Any) -> bool:
    """Return whether two entries of `attributes_of` differ. Values without a text are compared by identity."""
    return before != now if isinstance(before, str) and isinstance(now, str) else before is not now


def _assigned(cls: type, name: str) -> str:
    """Return the text of an attribute that a cell assigned to a class."""
    value = vars(cls)[name]
    if isinstance(value, FunctionType):
        return f"# {cls.__name__}.{name}\n{_statement_of(value.__code__)}"
    try:
        return _assignment(f"{cls.__name__}.{name}", value)
    except _NoText as error:
        raise ProfileError(f"A cell assigns {error} to {cls.__name__}.{name}, which keys cannot contain: write it in "
                           "the class.") from None


def _definition(name: str, value: Any) -> str | None:
    """Return the text of a function, class or value of a cell; None for a type, or if it is imported.

    Raises:
        _NoText: for any other value.
    """
    value = getattr(value, "__wrapped__", value)
    if isinstance(value, FunctionType | type) and value.__module__ == CELL:
        functions = [value] if isinstance(value, FunctionType) else list(functions_of(value))
        if functions:
            return _statement_of(functions[0].__code__)
        value = {key: one for key, one in vars(value).items() if _is_plain(one)}
    modules = emlib_modules() if _is_plain(value) else [module for module in sys.modules if module != CELL]
    if isinstance(value, WITHOUT_VALUE) or _is_type(value) or any(holds(module, name, value) for module in modules):
        return None
    return _assignment(name, value)


def _assignment(name: str, value: Any) -> str:
    """Return the statement that gives a name its value; a value that Python has no notation for is given by a text."""
    text = _text_of(value)
    return f"{name} = {text if _is_plain(value) else repr(text)}\n"


class _NoText(Exception):
    """A value has no text that is the same in every process; the message says what it is."""


def _is_type(value: Any) -> bool:
    """Return whether a value describes a type, such as `list[int]` or a field of pydantic."""
    return get_origin(value) is not None or type(value).__module__.partition(".")[0] in ("typing", "pydantic")


def _text_of(value: Any) -> str:
    """Return a value as text: equal for equal values, in every process.

    Raises:
        _NoText: it has none.
    """
    if _is_plain(value):
        return repr(value)
    kind, module = type(value).__name__, type(value).__module__
    if isinstance(value, dict):
        return f"{kind}({', '.join(f'{_text_of(key)}: {_text_of(one)}' for key, one in value.items())})"
    if isinstance(value, Enum):
        return f"{kind}.{value.name}({_text_of(value.value)})"
    if isinstance(value, STABLE):
        return repr(value)
    if isinstance(value, tuple | list | deque):
        return f"{kind}({', '.join(map(_text_of, value))})"
    if isinstance(value, set | frozenset):
        return f"{kind}({', '.join(sorted(map(_text_of, value)))})"
    if isinstance(value, re.Pattern):
        return f"{kind}({value.pattern!r}, {value.flags})"
    if isinstance(value, PurePath):
        return f"{kind}({str(value)!r})"
    if module in ("numpy", "torch") and hasattr(value, "tolist"):
        return f"{kind}({value.dtype}, {of_text(_text_of(value.tolist()))})"
    if module == "torch":  # a dtype or a device
        return repr(value)
    raise _NoText(f"a value of the type {kind}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN) and not isinstance(value, Enum)  # whose representation is no expression


def _statement_of(code: CodeType) -> str:
    """Return the statement of a cell that holds a function's code."""
    text = _text_around(code)
    found = [statement for statement in ast.parse(text).body
             if _first_line(statement) <= code.co_firstlineno <= (statement.end_lineno or 0)]
    if not found:
        raise ValueError(f"the source of {code.co_name} cannot be found: define it in a cell or a file")
    return _lines_of(found[0], text)


def free_names(text: str, scope: Mapping[str, Any], own: str) -> set[str]:
    """Return the global names that the text of the class `own` uses; a local of the same name is not one."""
    used = _read_globals(symtable.symtable(text, own, "exec"))
    return {name for name in used if name in scope and name not in (own, *vars(builtins))}


def _read_globals(table: symtable.SymbolTable) -> set[str]:
    """Return the global names that a block and the blocks in it read."""
    found = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() and symbol.is_referenced()}
    return found.union(*map(_read_globals, table.get_children()))


def emlib_modules() -> list[str]:
    """Return the modules of this package, and those of typing and pydantic, that are imported."""
    return sorted(name for name in sys.modules if name.startswith("emlib.") or name in ("typing", "pydantic"))


def holds(module: str, name: str, value: Any) -> bool:
    """Return whether a module has this value under this name."""
    return module in sys.modules and getattr(sys.modules[module], "__dict__", {}).get(name) is value  # some have none


def _text_around(code: CodeType) -> str:
    linecache.checkcache(code.co_filename)  # a plugin may have changed since it was last read
    return "".join(linecache.getlines(code.co_filename))


def _lines_of(node: ast.stmt, text: str) -> str:
    return textwrap.dedent("\n".join(text.split("\n")[_first_line(node) - 1:node.end_lineno])) + "\n"


def _first_line(node: ast.stmt) -> int:
    decorators: Collection[ast.expr] = node.decorator_list if isinstance(node, DEFINITIONS) else ()
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])
