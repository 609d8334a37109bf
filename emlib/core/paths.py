"""Where the study's files are. This module creates no folder: the code that writes a file does."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"
DEMO_DATA = ROOT / "emlib" / "data" / "demo"

STORE = "store"  # in the folder of results: the artefacts of all studies
LABELS = "labels"  # in the folder of results: the labels that people gave to answers of all studies
EFFECTIVE = "profile.yaml"  # in a folder of results: the full profile that they were made with
VARIABLES = ("EMLIB_RUNS_DIR", "EMLIB_CACHE_DIR", "EMLIB_DATA_DIR")  # of the environment: folders elsewhere


YAML = (".yaml", ".yml")  # the endings of YAML files; a profile, a trait or a rubric with one is a path, else a name

# The name that a profile gives itself, on a separate line, so that it is read without a YAML library.
STATED_NAME = re.compile(r"^name:[ \t]*(['\"]?)([A-Za-z0-9][A-Za-z0-9_.+-]*)\1[ \t]*(?:#.*)?$", re.MULTILINE)


def stated_name(path: Path) -> str | None:
    """Return the `name` that a profile's file gives its study; None without a name or a file."""
    try:
        found = STATED_NAME.search(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):  # no file, or a path that no file system allows
        return None
    return None if found is None or found[2] == "null" else found[2]


def is_yaml(named: str) -> bool:
    """Return whether a text is the path of a YAML file, by its ending."""
    return named.endswith(YAML)


def yaml_file(folder: Path, name: str) -> Path:
    """Return the file `<name>.yaml` in a folder, or `<name>.yml` if there is only that."""
    return yaml_files(folder).get(name, folder / f"{name}.yaml")


def yaml_files(folder: Path) -> dict[str, Path]:
    """Return the YAML files of a folder by their names without ending; `.yaml` wins over `.yml`."""
    return {path.stem: path for ending in reversed(YAML) for path in sorted(folder.glob(f"*{ending}"))}


def study_name(profile: str) -> str:
    """Return the name of a study's folder of results: the profile's `name`, or else the name of its file.

    A profile saved in a folder of results belongs to that folder.

    Raises:
        ProfileError: that is not a name, or it is that of a folder of all studies.
    """
    from emlib.core.errors import ProfileError, shortened  # here: the Makefile runs this file alone
    from emlib.core.names import ALLOWED, is_name

    name = folder_name(profile)
    if reason := reserved(name) or (None if is_name(name) else f"a name is made of {ALLOWED}"):
        raise ProfileError(f"{shortened(profile, 300)}: '{shortened(name)}' cannot name a folder of results: {reason}. "
                           "Rename the file, or give it a line such as name: my_study")
    return name


def reserved(name: str) -> str | None:
    """Return why no study may have a name; None if it may."""
    return f"the folder runs/{name} is that of all studies" if name in (STORE, LABELS) else None


def folder_name(profile: str) -> str:
    """Return what `study_name` checks; without a check, for the Makefile."""
    path = Path(profile)
    if not is_yaml(profile):
        return stated_name(yaml_file(PARAMS, profile)) or profile
    named = path.resolve().parent.name if path.name == EFFECTIVE else path.stem
    return stated_name(path) or named


def runs() -> Path:
    """Return the folder of results and the store; `EMLIB_RUNS_DIR` moves it (to a large or a shared disk)."""
    return Path(os.environ.get("EMLIB_RUNS_DIR") or ROOT / "runs")


def cache() -> Path:
    """Return the folder of downloaded data sets and converted models; `EMLIB_CACHE_DIR` moves it."""
    return Path(os.environ.get("EMLIB_CACHE_DIR") or ROOT / "data")


def variables() -> dict[str, str]:
    """Return those of `VARIABLES` that are set, with absolute paths: for a process that runs in another folder."""
    return {name: str(Path(given).absolute()) for name in VARIABLES if (given := os.environ.get(name))}


if __name__ == "__main__":  # for the Makefile, before anything is installed
    print(folder_name(sys.argv[1]))
