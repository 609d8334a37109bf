"""What notebooks take from emlib is there: running a chapter is dear, and a merge may take a function from under it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_type_hints

import nbformat
import pytest

from emlib.core import paths
from emlib.workflow import graph


def code(chapter: str) -> list[ast.AST]:
    """Everything in a chapter's cells, and in the Python that its prose shows."""
    book = nbformat.read(paths.NOTEBOOKS / f"{chapter}.ipynb", as_version=4)
    sources = [cell.source for cell in book.cells if cell.cell_type == "code"]
    for cell in book.cells:
        sources += re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL) if cell.cell_type == "markdown" else []
    return [node for source in sources for node in ast.walk(ast.parse(source))]


def imported(nodes: list[ast.AST]) -> Iterator[tuple[str, Any]]:
    """What the chapter imports from emlib, by its name there; raises where there is no such thing."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "emlib":
            for alias in node.names:
                home = importlib.import_module(str(node.module))
                if not hasattr(home, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                yield alias.asname or alias.name, getattr(home, alias.name)


def instances(nodes: list[ast.AST], names: dict[str, Any]) -> Iterator[tuple[str, type]]:
    """The variables that a call of something imported gives a value of emlib's classes, and their class."""
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Call):
            made = found(node.value.func, names)
            kind = made if isinstance(made, type) else get_type_hints(made).get("return") if callable(made) else None
            if isinstance(kind, type) and kind.__module__.startswith("emlib."):
                yield node.targets[0].id, kind


def found(node: ast.AST, names: dict[str, Any]) -> Any:
    """What a name, or an attribute of one, stands for; None where it is nothing of emlib's."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
        owner = names[node.value.id]
        made = getattr(owner.__init__, "__code__", None)
        if isinstance(owner, type) and made and node.attr in (*made.co_names, *made.co_varnames):  # set when it is made
            return None
        return getattr(owner, node.attr)
    return None


@pytest.mark.parametrize("chapter", graph.chapters())
def test_names_and_keywords_exist(chapter: str) -> None:
    nodes = code(chapter)
    names = dict(imported(nodes))
    modules = {name for name, value in names.items() if isinstance(value, ModuleType)}
    names |= {name: kind for name, kind in instances(nodes, names) if name not in modules}
    for node in nodes:
        if isinstance(node, ast.Call) and inspect.isfunction(called := found(node.func, names)):
            inspect.signature(called).bind_partial(**{word.arg: None for word in node.keywords if word.arg})
        elif isinstance(node, ast.Attribute):
            found(node, names)
    assert names


def test_a_name_that_is_gone_is_found() -> None:
    nodes = list(ast.walk(ast.parse("from emlib.report import tables\ntables.gone(1)\n")))
    names = dict(imported(nodes))
    with pytest.raises(AttributeError, match="gone"):
        [found(node, names) for node in nodes]
    with pytest.raises(ImportError, match="gone"):
        dict(imported(list(ast.walk(ast.parse("from emlib.report import gone")))))
