"""Errors inside the hooks of somebody's own defense: of which kind and hook they are, and where in its file.

Such an exception ends a training in our code, or in a library, with a traceback in which the author's line is one of
many. Ours are left as they are: an exception inside them is a mistake of ours.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import Any

from emlib.core.errors import EmlibError
from emlib.core.source import AS_WRITTEN, CELL, functions_of

NOT_ITS_OWN = (EmlibError, MemoryError, InterruptedError)  # said already, or from outside
OUT_OF_GPU_MEMORY = "OutOfMemoryError"  # torch's, which this module does not import


def name_errors(cls: type[Any], hooks: Iterable[str]) -> None:
    """Let each of the hooks that a class defines raise its exceptions as `named_errors` does."""
    for hook in hooks:
        function = vars(cls).get(hook)
        if isinstance(function, FunctionType):
            setattr(cls, hook, _naming(function, hook))


def _naming(function: Callable[..., Any], hook: str) -> Callable[..., Any]:
    @wraps(function)
    def called(self: Any, *given: Any, **by_name: Any) -> Any:
        with named_errors(self, hook):
            return function(self, *given, **by_name)

    setattr(called, AS_WRITTEN, function)
    return called


@contextmanager
def named_errors(defense: Any, hook: str) -> Iterator[None]:
    """Raise an exception inside a hook from an EmlibError that names the kind, the hook, the file and the line."""
    try:
        yield
    except Exception as error:  # an author's code can raise anything
        if _is_library(type(defense)) or isinstance(error, NOT_ITS_OWN) or type(error).__name__ == OUT_OF_GPU_MEMORY:
            raise
        file, line = _place(error, type(defense), hook)
        raise EmlibError(f"The defense '{defense.kind}' fails in its {hook}: {type(error).__name__}: {error} "
                         f"({file}, line {line}).") from error


def _place(error: Exception, cls: type[Any], hook: str) -> tuple[str, int]:
    """Return the author's file and line that an exception passed last; those of the hook where it was not entered."""
    files = {inspect.unwrap(function).__code__.co_filename for each in cls.__mro__ if not _is_library(each)
             for function in functions_of(each)}
    passed = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
              if frame.f_code.co_filename in files]
    code = inspect.unwrap(getattr(cls, hook)).__code__
    file, line = passed[-1] if passed else (code.co_filename, code.co_firstlineno)
    return "its cell" if cls.__module__ == CELL else file, line


def _is_library(cls: type[Any]) -> bool:
    """Return whether a class is of emlib, of pydantic or of Python itself, and no author's."""
    return cls.__module__.partition(".")[0] in ("emlib", "pydantic", "builtins", "abc", "typing")
