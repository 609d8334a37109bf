"""What a profile's results depend on besides its own words: the contents of every file that it names, and no paths.

So moving a folder makes nothing stale, and editing a file that another profile names makes nothing stale either.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from emlib.config import OWN, Profile, domains_of, trait_of
from emlib.config.references import Kind, is_path, mapped, path_of
from emlib.core import digests, paths
from emlib.data.sources import entry_of

PLANNING = ("models", "prices", "throughput")  # of params/: what every profile's plan and costs are estimated by


def contents_of(profile: Profile) -> Any:
    """Everything that a profile says and names, as plain data; what changes no result is left out.

    What is shared stands in it as far as the profile names it: its data sets, the entries of its sources, its trait.
    """
    said = mapped(_stated(profile), _content)
    shared = {name: domain.model_dump(mode="json") for name, domain in domains_of(profile).items()
              if name in _data_sets(profile)}
    domains = mapped({"data": shared}, _content)
    trait = trait_of(profile).model_dump(mode="json")
    fixed = () if profile.grpo is None else profile.grpo.data.sources  # sources that a section has without naming them
    sources = [_content("source", "source", named) for named in (trait.pop("source"), *fixed) if named is not None]
    return [said, domains, trait, sources,
            [digests.of_file(paths.PARAMS / f"{name}.yaml") for name in PLANNING]]


def _stated(profile: Profile) -> dict[str, Any]:
    """What a profile says, of defenses what it states: a plugin's defaults are its code's, which may not be run here."""
    said = profile.model_dump(mode="json", exclude={"job", "name"})
    parts: list[tuple[Any, Any]] = [(said, profile), (said["grpo"], profile.grpo), (said["benign"], profile.benign)]
    if profile.benign is not None:
        parts += [(said["benign"]["tasks"][name], task) for name, task in profile.benign.tasks.items()]
    for plain, section in parts:
        if section is not None and section.methods:
            plain["methods"] = [method.model_dump(mode="json", exclude={"defenses"}) | {"defenses": [
                defense.model_dump(mode="json", exclude_unset=True) for defense in method.defenses]}
                for method in section.methods]
    return said


def _data_sets(profile: Profile) -> set[str]:
    """The data sets that a profile names, for its runs or for the models that score its pool."""
    pool = profile.pool
    scorers = () if pool is None else [scorer.domain for scorer in pool.scorers or ()]
    others = () if pool is None else pool.others or ()
    return {*profile.datasets, *scorers, *others} - {OWN}


def _content(key: str, kind: Kind, named: str) -> Any:
    """What stands for a reference: the digest of its file or folder, its entry in a registry, or its name.

    The words of the trait and the registry's entries that are named stand by themselves, without the rest of the file.
    """
    if key in ("trait", "sources"):
        return ""
    entry = entry_of(named) if kind == "source" else None
    if entry is not None:
        return entry.model_dump(mode="json")
    path = path_of(kind, named) if is_path(kind, named) else None
    if path is None:
        return named
    files = sorted(file for file in path.iterdir() if file.is_file()) if kind == "folder" else [path]
    return [[file.name if kind == "folder" else "", _digest(file, *_state(file))] for file in files]


def _state(file: Path) -> tuple[int, int]:
    told = file.stat()
    return told.st_size, told.st_mtime_ns


@lru_cache(maxsize=512)
def _digest(file: Path, _size: int, _changed: int) -> str:
    """A file's digest, read once a process while it stays as it is: weights are large, and jobs are many."""
    return digests.of_file(file)
