"""All makers: importing this module registers those of every module beside it."""

from importlib import import_module
from pkgutil import iter_modules

from emlib import make

for module in iter_modules(make.__path__):
    if module.name != "makers":
        import_module(f"{make.__name__}.{module.name}")
