"""References of a profile to files, folders, sources, traits and rubrics.

A relative path is looked up beside the file that contains it, and then in the project's folder. A loaded profile has
only absolute paths, so that its user need not know the file. A reference that is not a path names something that ships
with emlib: a trait of `params/traits/`, an entry of `params/sources.yaml`, or the file `demo/...`. An entry of the
profile's registry is written `/home/me/sources.yaml#entry`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from emlib.core import paths
from emlib.core.errors import ProfileError, nearest, shortened
from emlib.core.plain_yaml import read_yaml

Kind = Literal["file", "files", "folder", "source", "trait", "rubric"]
# The keys of a profile that hold references. `*` is every item of a list, or every name of a table.
JUDGES = ("judge", "second_judge.judge", "pool.refusals.judge", "grpo.rewards.judge", "evaluation.sets.*.judge")
PLACES: dict[str, Kind] = {
    "trait": "trait", "monitor.traits.*": "trait", "sources": "file", "plugins.*": "file",
    "data.*.aligned": "source", "data.*.misaligned": "source", "data.*.pairs": "source",
    "evaluation.general": "source", "evaluation.choices.*": "source", "evaluation.sets.*.source": "source",
    "pool.source": "source", "pool.scorers.*.folder": "folder",
    "own.file": "files",
    "benign.tasks.*.train": "source", "benign.tasks.*.test": "source",
    "grpo.methods.*.defenses.*.source": "source", "methods.*.defenses.*.source": "source",
    "benign.methods.*.defenses.*.source": "source", "benign.tasks.*.methods.*.defenses.*.source": "source",
    "methods.*.defenses.*.base.path": "folder", "benign.methods.*.defenses.*.base.path": "folder",
    "benign.tasks.*.methods.*.defenses.*.base.path": "folder",
    "model.path": "folder", **{f"{judge}.model.path": "folder" for judge in JUDGES},
    **{f"{judge}.rubric": "rubric" for judge in JUDGES}, "evaluation.sets.*.rubric": "rubric",
    "evaluation.in_domain_rubric": "rubric",
    **{f"{judge}.from": "file" for judge in JUDGES}}
NAME = re.compile(r"[a-z0-9_]+")  # the name of a registry's entry
ENTRY = re.compile(r"(.+\.ya?ml)#([a-z0-9_]+)")  # an entry of a registry that does not ship with emlib
DEMO = "demo/"
PATTERN = "*?["  # the characters of a pattern of file names
Change = Callable[[str, Kind, str], Any]


def mapped(data: Any, change: Change) -> Any:
    """Replace every reference in a profile's plain data by `change(key, kind, reference)`."""
    for place, kind in PLACES.items():
        data = at_place(data, place, partial(_changed, change, kind))
    return data


def _changed(change: Change, kind: Kind, key: str, named: Any) -> Any:
    return change(key, kind, named) if isinstance(named, str) else named


def at_place(data: Any, place: str, change: Callable[[str, Any], Any], above: str = "") -> Any:
    """Replace what stands at a place such as `data.*.aligned` by `change(key, value)`, where there is something."""
    if not place:
        return change(above.removeprefix("."), data)
    key, _, rest = place.partition(".")
    if key == "*" and isinstance(data, list):
        return [at_place(item, rest, change, f"{above}.{number}") for number, item in enumerate(data)]
    if isinstance(data, dict):
        inner = data if key == "*" else {key: data[key]} if key in data else {}
        return data | {name: at_place(item, rest, change, f"{above}.{name}") for name, item in inner.items()}
    return data


def references(data: Any) -> list[tuple[str, Kind, str]]:
    """Return every reference in a profile's plain data: its key, its kind and its text."""
    found: list[tuple[str, Kind, str]] = []
    mapped(data, lambda key, kind, named: found.append((key, kind, named)))
    return found


def is_path(kind: Kind, named: str) -> bool:
    """Return whether a reference is a path and not the name of something that ships with emlib."""
    if kind == "source":
        return not (named.startswith(DEMO) or NAME.fullmatch(named))
    return kind in ("file", "files", "folder") or paths.is_yaml(named)


def path_of(kind: Kind, named: str) -> Path | None:
    """Return the file or the folder of a resolved reference; None for the name of something that ships with emlib."""
    if kind == "source" and named.startswith(DEMO):
        return paths.DEMO_DATA / named.removeprefix(DEMO)
    if not is_path(kind, named):
        return None
    entry = ENTRY.fullmatch(named) if kind == "source" else None
    return Path(entry[1] if entry else named)


def resolved(data: Any, stated_in: Path) -> Any:
    """Make the paths in a profile's plain data absolute; `stated_in` is the file that contains them.

    Judges are spelled out first: the path of a file is `{from: path}`, and a provider's judge is of kind `openai`.
    """
    for place in JUDGES:
        data = at_place(data, place, lambda _, judge: _spelled_out(judge))
    return mapped(data, lambda _, kind, named: absolute(named, stated_in) if is_path(kind, named) else named)


def _spelled_out(judge: Any) -> Any:
    if isinstance(judge, str) and paths.is_yaml(judge):
        return {"from": judge}
    return {"kind": "openai"} | judge if isinstance(judge, dict) and "provider" in judge else judge


def absolute(named: str, stated_in: Path) -> str:
    """Resolve a path in the file `stated_in`: beside that file, or else in the project's folder if it exists there."""
    entry = ENTRY.fullmatch(named)
    path = os.path.expanduser(entry[1] if entry else named)  # noqa: PTH111 -- it leaves ~somebody who has no home here
    beside, in_project = stated_in.absolute().parent / path, paths.ROOT / path
    found = beside if matching(beside) or not matching(in_project) else in_project
    return os.path.normpath(found) + (f"#{entry[2]}" if entry else "")


def matching(path: Path) -> list[Path]:
    """Return the path if it exists, or the files that fit it as a pattern, such as `part-*.jsonl`, in their order."""
    if exists(path) or "\0" in str(path) or not any(sign in str(path) for sign in PATTERN):
        return [path] if exists(path) else []
    start = Path(path.anchor)
    return sorted(file for file in start.glob(str(path.relative_to(start))) if file.is_file())


def exists(path: Path) -> bool:
    """Return whether there is a file or a folder at a path; none is at a path that no file system allows."""
    return os.path.exists(path)  # noqa: PTH110 -- it is false for a name of 5,000 letters, or a null character


def with_own_registry(data: Any) -> Any:
    """Add the registry's path to each source that is an entry of the profile's registry."""
    own = data.get("sources") if isinstance(data, dict) else None
    if not isinstance(own, str) or not os.path.isfile(own):  # noqa: PTH113 -- `refuse_missing` reports it
        return data
    return mapped(data, lambda _, kind, named: of_registry(named, own) if kind == "source" else named)


def of_registry(named: str, registry: str | None) -> str:
    """Add the registry's path to a source if it is an entry of that registry."""
    return f"{registry}#{named}" if registry is not None and named in entries_of(Path(registry)) else named


def refuse_missing(data: Any, where: str) -> None:
    """Raise ProfileError for what does not exist, a line each: file, key, the path that was tried, the nearest name."""
    lines = [f"{where}: '{shortened(key)}' {reason}" for key, kind, named in references(data)
             if (reason := why_missing(kind, named))]
    if lines:
        raise ProfileError("\n".join(lines))


def why_missing(kind: Kind, named: str) -> str:
    """Explain why a resolved reference leads nowhere; an empty string if it is valid."""
    path = path_of(kind, named)
    if path is None:
        return _why_unknown(named, paths.PARAMS / "sources.yaml") if kind == "source" else ""
    if kind == "files" and any(file.is_file() for file in matching(path)):
        return ""
    if not exists(path) or not (path.is_dir() if kind == "folder" else path.is_file()):
        noun = "folder" if kind == "folder" else "file"
        above = path.parent
        names = [other.name for other in above.iterdir()] if exists(above) and above.is_dir() else []
        return (f"names the {noun} {shortened(str(path), 300)}, which does not exist; nor does the project's folder "
                f"{paths.ROOT} have a {noun} of that relative path.{nearest(path.name, names)} Relative paths start at "
                "the folder of the file that contains them.")
    entry = ENTRY.fullmatch(named)
    return _why_unknown(entry[2], path) if entry and kind == "source" else ""


def entries_of(registry: Path) -> tuple[str, ...]:
    """Return the names of a registry's entries, without validating them."""
    return _entries_of(registry, registry.stat().st_mtime_ns if registry.is_file() else 0)


@lru_cache(maxsize=16)
def _entries_of(registry: Path, _changed: int) -> tuple[str, ...]:
    entries = read_yaml(registry)
    return tuple(map(str, entries)) if isinstance(entries, dict) else ()


def _why_unknown(name: str, registry: Path) -> str:
    known = entries_of(registry)
    if name in known:
        return ""
    return (f"names the source '{shortened(name)}', which {registry} does not have.{nearest(name, known)} Expected one "
            "of its entries, demo/... for a file that emlib ships, or the path of a file, which has a dot or a slash "
            "in it.")
