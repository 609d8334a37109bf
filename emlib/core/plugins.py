"""Plugin files: user-defined defenses that a profile names and that other processes can import.

A plugin is code. It runs only if the environment variable `PLUGINS` is `yes`, and its path and digest are printed: once
for a command and the processes that it starts.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from emlib.core.digests import of_file, of_text
from emlib.core.errors import ProfileError
from emlib.core.files import write_text
from emlib.core.progress import say
from emlib.core.source import CELL, emlib_modules, free_names, holds, scope_of, source_of

if TYPE_CHECKING:
    from emlib.core.defense import Defense

ALLOW = "PLUGINS"
SAID = "EMLIB_PLUGINS_SAID"  # in the environment of the processes that this one starts: the digests that it printed
MODULE = "emlib_plugin_"  # prefix of the module names of plugin files
AS_WRITTEN = "# Edit this file as you like; it is then not overwritten. Its digest as it was written: "
_loaded: dict[Path, str] = {}


class CannotBeImported(ProfileError):
    """Another process cannot import a class from where it is defined."""


def load(paths: Iterable[str | Path]) -> None:
    """Run plugin files, each once unless its content changes.

    Raises:
        ProfileError: plugins are not allowed, a file is missing, or it fails; the message names the file.
    """
    for path in (Path(path).resolve() for path in paths):
        if not path.is_file():
            raise ProfileError(f"{path}: there is no such plugin file. Correct the path in 'plugins'.")
        digest = of_file(path)
        if _loaded.get(path) != digest:
            if os.environ.get(ALLOW) != "yes":
                raise ProfileError(f"{path}: the profile names this plugin, which is code. Read it, then allow "
                                   f"it: {ALLOW}=yes in the environment, or make ... {ALLOW}=yes. Its SHA-256 is "
                                   f"{digest}.")
            if digest not in os.environ.get(SAID, ""):
                say(f"running the plugin {path} (SHA-256 {digest})")
                os.environ[SAID] = f"{os.environ.get(SAID, '')} {digest}".strip()
            _run(path)
            _loaded[path] = digest


def files() -> tuple[Path, ...]:
    """Return the plugin files that this process has run."""
    return tuple(_loaded)


def _run(path: Path) -> None:
    name = MODULE + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a plugin can raise anything: name its file
        raise ProfileError(f"{path}: this plugin fails. {type(error).__name__}: {error}") from error


def file_of(cls: type[Defense]) -> Path | None:
    """Return the plugin file that defines a class; None for a class of an installed package.

    Raises:
        CannotBeImported: a notebook's cell defines the class, which no other process can import.
    """
    if cls.__module__ == CELL:
        raise CannotBeImported(f"{cls.__name__} is defined in a notebook's cell, which another process cannot import. "
                           f"Write it to a file with keep({cls.__name__}), and name that in the profile's 'plugins'.")
    module = sys.modules[cls.__module__]
    return Path(str(module.__file__)) if cls.__module__.startswith(MODULE) else None


def keep(cls: type[Defense], path: str | Path | None = None) -> Path:
    """Write a class, usually from a notebook's cell, to a plugin file with the imports that it needs.

    Args:
        cls: the class.
        path: the file (`.py`), or a folder for a file that is named after the kind; by default the current folder.

    Raises:
        ProfileError: the class uses something that is defined in the notebook and cannot be imported, or the file was
            edited since it was written, and would be lost.
    """
    text, scope = source_of(cls), scope_of(cls)
    target = Path(path or ".")
    if target.suffix != ".py":
        target /= f"{cls.model_fields['kind'].default}.py"
    lines = sorted({_import_of(cls, name) for name in free_names(text, scope, cls.__name__)})
    heading = f'"""The defense {cls.__name__}, kept from a notebook."""'
    itself = [f"\n\n{cls.__name__}.in_grpo = {cls.__name__}\n"] if cls.in_grpo is cls else []
    write(target, "\n".join([heading, "", *lines, "", "", text, *itself]))
    return target


def write(path: Path, text: str) -> None:
    """Write a file that is there to be edited, under a line with a digest of it, which tells whether it was.

    Raises:
        ProfileError: the file was edited since it was written.
    """
    if path.is_file() and _text_of(path) != text and not _is_as_written(path):
        raise ProfileError(f"{path}: was edited since it was written, or is of an earlier version, and is not "
                           "overwritten. Move it away, or name another file.")
    write_text(path, f"{AS_WRITTEN}{of_text(text)[:16]}\n{text}")


def unedited(folder: Path) -> Path:
    """Return a folder to write such files to: this one, or one beside it if it holds others, which is said."""
    place, number = folder, 1
    while others := [path.name for path in sorted(place.glob("[!.]*")) if path.is_file() and not _is_as_written(path)]:
        number += 1
        say(f"{place}: stays as it is, because {', '.join(others)} was edited, added or written by an earlier "
            "version.")
        place = folder.with_name(f"{folder.name}_{number}")
    return place


def _is_as_written(path: Path) -> bool:
    first, _, others = _text_of(path).partition("\n")
    return first == f"{AS_WRITTEN}{of_text(others)[:16]}"


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _import_of(cls: type[Defense], name: str) -> str:
    """Return the line that imports the object of a name."""
    value = scope_of(cls)[name]
    if isinstance(value, ModuleType):
        return f"import {value.__name__}" if value.__name__ == name else f"import {value.__name__} as {name}"
    for module in (getattr(value, "__module__", None), *emlib_modules()):
        if module not in (None, CELL) and holds(str(module), name, value):
            return f"from {module} import {name}"
    raise ProfileError(f"{cls.__name__} uses {name}, which is defined in the notebook. Move it into the class, or "
                       "import it from a file.")
