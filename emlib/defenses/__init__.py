"""Defenses, one module each: importing this package registers all of them for profiles.

`python -m emlib.defenses` lists them. Your own defense is a subclass of `Defense`; `keep` writes one that is defined in
a notebook cell to a plugin file, and `emlib.training.conformance.check` tests it.
"""

from importlib import import_module
from pkgutil import iter_modules

from emlib.core.defense import Defense, GrpoDefense
from emlib.core.plugins import keep

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")

__all__ = ["Defense", "GrpoDefense", "keep"]
