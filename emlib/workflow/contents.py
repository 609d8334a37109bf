"""Everything that a profile's results depend on: its values, and the contents but not the paths of files it names.

So moving a folder makes nothing stale, and neither does editing a file that only another profile names.
"""

from __future__ import annotations

from typing import Any

from emlib.config import OWN, Profile, domains_of, other_traits, trait_of
from emlib.config.references import Kind, is_path, mapped, matching, path_of
from emlib.core import digests, paths
from emlib.data.sources import entry_of

PLANNING = ("models", "prices", "throughput")  # files of params/ from which every profile's costs are estimated


def contents_of(profile: Profile) -> Any:
    """Return everything that a profile states and names as plain data, without what changes no result.

    Of shared files it includes the parts that the profile names: its data sets, the entries of its sources, its trait.
    """
    stated = mapped(_stated(profile), _content)
    shared = {name: domain.model_dump(mode="json") for name, domain in domains_of(profile).items()
              if name in _data_sets(profile)}
    domains = mapped({"data": shared}, _content)
    traits = [trait_of(profile, name).model_dump(mode="json") for name in (None, *other_traits(profile))]
    fixed = () if profile.grpo is None else profile.grpo.data.sources  # sources that the section implies
    named = (*(trait.pop("source") for trait in traits), *fixed)
    sources = [_content("source", "source", one) for one in named if one is not None]
    return [stated, domains, traits, sources,
            [digests.of_file(paths.PARAMS / f"{name}.yaml") for name in PLANNING]]


def _stated(profile: Profile) -> dict[str, Any]:
    """Return a profile's values; of defenses only those stated, because a plugin's defaults are in its code."""
    data = profile.model_dump(mode="json", exclude={"job", "name"})
    parts: list[tuple[Any, Any]] = [(data, profile), (data["grpo"], profile.grpo), (data["benign"], profile.benign)]
    if profile.benign is not None:
        parts += [(data["benign"]["tasks"][name], task) for name, task in profile.benign.tasks.items()]
    for plain, section in parts:
        if section is not None and section.methods:
            plain["methods"] = [method.model_dump(mode="json", exclude={"defenses"}) | {"defenses": [
                defense.model_dump(mode="json", exclude_unset=True) for defense in method.defenses]}
                for method in section.methods]
    return data


def _data_sets(profile: Profile) -> set[str]:
    """Return the data sets that a profile names, for its runs or for the models that score its pool."""
    pool = profile.pool
    scorers = () if pool is None else [scorer.domain for scorer in pool.scorers or ()]
    others = () if pool is None else pool.others or ()
    return {*profile.datasets, *scorers, *others} - {OWN}


def _content(key: str, kind: Kind, named: str) -> Any:
    """Return the content of a reference: the digest of its file or folder, its entry in a registry, or its name.

    The trait and the registry's entries are included elsewhere, without the rest of their files.
    """
    if key in ("trait", "sources"):
        return ""
    entry = entry_of(named) if kind == "source" else None
    if entry is not None:
        return entry.model_dump(mode="json")
    path = path_of(kind, named) if is_path(kind, named) else None
    if path is None:
        return named
    if kind != "folder" and path.is_file():
        return [["", digests.of_unchanged_file(path)]]
    files = matching(path) if kind == "files" else sorted(file for file in path.iterdir() if file.is_file())
    return [[file.name, digests.of_unchanged_file(file)] for file in files]
