"""The source text of a class, and of what it uses of its file, or of the notebook's cells."""

from __future__ import annotations

import ast
import builtins
import linecache
import symtable
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

CELL = "__main__"  # the module of classes that a notebook's cells define
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def source_of(cls: type) -> str:
    """Return the text of a class's definition, with its decorators, dedented.

    Finds it through the functions of the class: they know their file, or their cell, whose text Python keeps for
    tracebacks. `inspect.getsource` does not find classes of a cell.

    Raises:
        ValueError: the text is not found, or the class defines no function.
    """
    for function in functions_of(cls):
        text, line = _text_around(function.__code__), function.__code__.co_firstlineno
        found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)
                 and node.name == cls.__name__ and node.lineno <= line <= (node.end_lineno or 0)]
        if found:
            return _lines_of(found[-1], text)
    raise ValueError(f"the source of {cls.__name__} cannot be found: define it in a cell or a file, with at least "
                     "one method")


def functions_of(cls: type) -> Iterator[FunctionType]:
    """Yield the functions that a class's body defines, including those of properties and class methods."""
    for member in vars(cls).values():
        found = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        if isinstance(found, FunctionType) and found.__qualname__.startswith(f"{cls.__qualname__}."):
            yield found


def used_of_file(cls: type) -> str:
    """Return the statements of a class's file that it uses, directly or through one another, in the file's order.

    They may stand below the class. Imports are left out, and so is what other files define.
    """
    text = _text_around(next(functions_of(cls)).__code__)
    statements = [(statement, _defined_by(statement)) for statement in ast.parse(text).body]
    names, used = _names(ast.parse(source_of(cls))), set[int]()
    while more := [place for place, (statement, defined) in enumerate(statements)
                   if defined & names and cls.__name__ not in defined and place not in used]:
        used.update(more)
        names |= {name for place in more for name in _names(statements[place][0])}
    return "".join(_lines_of(statements[place][0], text) for place in sorted(used))


def _defined_by(statement: ast.stmt) -> set[str]:
    """Return the names that a statement of a file gives to functions, classes and values; none for an import."""
    if isinstance(statement, DEFINITIONS):
        return {statement.name}
    inside = list(ast.walk(statement))
    return {node.name for node in inside if isinstance(node, DEFINITIONS)} | {
        node.id for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def used_of_cells(cls: type, text: str) -> str:
    """Return what a cell's class uses that is defined in cells alone, directly or through one another, by name.

    These are the texts of functions and classes as they are now, and plain values. `text` is the class's own.
    """
    scope = next(functions_of(cls)).__globals__
    found: dict[str, str] = {}
    waiting = free_names(text, scope, cls.__name__)
    while waiting:
        name = waiting.pop()
        definition = None if name in found else _definition(name, scope[name])
        if definition is not None:
            found[name] = definition
            waiting |= free_names(definition, scope, cls.__name__)
    return "".join(found[name] for name in sorted(found))


def _definition(name: str, value: Any) -> str | None:
    """Return the text of a function, class or plain value of a cell; None for anything else, or if it is imported."""
    value = getattr(value, "__wrapped__", value)
    if isinstance(value, FunctionType | type) and value.__module__ == CELL:
        functions = [value] if isinstance(value, FunctionType) else list(functions_of(value))
        if functions:
            return _statement_of(functions[0].__code__)
        value = {key: one for key, one in vars(value).items() if _is_plain(one)}
    if not _is_plain(value) or any(holds(module, name, value) for module in emlib_modules()):
        return None
    return f"{name} = {value!r}\n"


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return isinstance(value, PLAIN) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


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
    return module in sys.modules and vars(sys.modules[module]).get(name) is value


def _text_around(code: CodeType) -> str:
    linecache.checkcache(code.co_filename)  # a plugin may have changed since it was last read
    return "".join(linecache.getlines(code.co_filename))


def _lines_of(node: ast.stmt, text: str) -> str:
    return textwrap.dedent("\n".join(text.splitlines()[_first_line(node) - 1:node.end_lineno])) + "\n"


def _first_line(node: ast.stmt) -> int:
    decorators: Collection[ast.expr] = node.decorator_list if isinstance(node, DEFINITIONS) else ()
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
