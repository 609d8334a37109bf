"""Stamps: with which version of its profile a file in a folder of results was made.

A profile, or a file that it names, may be edited after it has run. Until its notebooks have run again, the folder has
files of both versions, and those of the former one must not be stated as results of the profile. So a table has a
stamp, a digest of all that the profile's results depend on (`contents_of`), in a comment of its LaTeX form; a figure
and an executed notebook have it in their metadata, and the recorded profile in a comment. It is that of the study that
made the file, as it was opened: by then another process may have recorded an edited profile in the same folder.
`results.csv` and its like need none: they are removed when another profile is recorded. An executed notebook has a
second one, of its job: of its cells, of emlib and of the slice as well.

Results depend on a profile's values, and on the contents but not the paths of the files that it names. So moving a
folder makes nothing stale, and neither does editing a file that only another profile names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from emlib.config import OWN, Profile, domains_of, load_profile, other_traits, trait_of
from emlib.config.judge_files import FREE
from emlib.config.references import JUDGES, Kind, at_place, is_path, mapped, matching, path_of, references
from emlib.core import digests, paths
from emlib.core.errors import ProfileError
from emlib.core.registry import is_ours
from emlib.core.schema import Strict
from emlib.data.sources import entry_of
from emlib.study import precision

# What changes no result, besides what is free of a judge; of sections that have defaults, by section.
NO_RESULT = {"job": True, "name": True, "title": True, "slice_by": True, "grpo": {"slice_by"}}
NO_RESULT_IN = {"training": ("checkpoint_every",), "backend": ("base_url",)}
STAMP = re.compile(rb"emlib-profile-[0-9a-f]{16}")
JOB = re.compile(rb"emlib-job-[0-9a-f]{16}")
_opened: dict[Path, str] = {}  # the stamp of the study that this process opened last, by its folder of results


def contents_of(profile: Profile) -> Any:
    """Return everything that a profile states and names as plain data, without what changes no result.

    Of shared files it includes the parts that the profile names: its data sets, the entries of its sources, its trait.
    An option at its default is left out, so that one of a later version of emlib changes nothing.
    """
    stated = mapped(_stated(profile), _content)
    shared = {name: _plain(domain) for name, domain in domains_of(profile).items() if name in _data_sets(profile)}
    domains = mapped({"data": shared}, _content)
    traits = [_plain(trait_of(profile, name)) for name in (None, *other_traits(profile))]
    fixed = () if profile.grpo is None else profile.grpo.data.sources  # sources that the section implies
    named = (*(trait.pop("source") for trait in traits if "source" in trait), *fixed)
    whole = [_content(key, kind, one) for key, kind, one in references(profile.model_dump(mode="json"))]
    files = [content for content in whole if not isinstance(content, str)]  # also of names that are defaults
    return [stated, domains, traits, [_content("source", "source", one) for one in named], files]


def _plain(record: Strict, **options: Any) -> Any:
    return record.model_dump(mode="json", exclude_defaults=True, **options)


def _stated(profile: Profile) -> dict[str, Any]:
    """Return a profile's values; of a plugin's defenses those stated, because its defaults are in its code."""
    reset = {name: section.model_copy(update={option: type(section).model_fields[option].default for option in options})
             for name, options in NO_RESULT_IN.items() if (section := getattr(profile, name))}
    data = _plain(profile.model_copy(update=reset), exclude=NO_RESULT)
    parts: list[tuple[Any, Any]] = [(data, profile), (data.get("grpo"), profile.grpo),
                                    (data.get("benign"), profile.benign)]
    if profile.benign is not None:
        parts += [(data["benign"]["tasks"][name], task) for name, task in profile.benign.tasks.items()]
    for plain, section in parts:
        if section is not None and section.methods:
            plain["methods"] = [_plain(method, exclude={"defenses"}) | {"defenses": [
                {"kind": one.kind} | (_plain(one) if is_ours(type(one)) else  # its kind is a default of its class
                                      one.model_dump(mode="json", exclude_unset=True))
                for one in method.defenses]} for method in section.methods]
    for place in JUDGES:
        data = at_place(data, place, _without_what_is_free)
    return data


def _without_what_is_free(_key: str, judge: Any) -> Any:
    return {name: value for name, value in judge.items() if name not in FREE} if isinstance(judge, dict) else judge


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
        return _plain(entry)
    path = path_of(kind, named) if is_path(kind, named) else None
    if path is None:
        return named
    if kind != "folder" and path.is_file():
        return [["", digests.of_unchanged_file(path)]]
    files = matching(path) if kind == "files" else sorted(file for file in path.iterdir() if file.is_file())
    return [[file.name, digests.of_unchanged_file(file)] for file in files]


def stamp_of(profile: Profile, study: str) -> str:
    """Return the stamp of a profile as it is now, and as are the files that it names; `study` is its folder's name."""
    resolved = precision.resolved(profile, study)
    recorded = Profile.model_validate_json(resolved.model_dump_json())  # states what a plugin's defenses left out
    return f"emlib-profile-{digests.of_value(contents_of(recorded))[:16]}"


def of_profile(name: str) -> str:
    """Return the stamp of a profile, given by the name of a file in `params/` or by a path."""
    return stamp_of(load_profile(name), paths.study_name(name))


def recorded(folder: Path) -> str:
    """Return the stamp of the profile that a folder of results records; empty without one."""
    return of_file(folder / paths.EFFECTIVE) or ""


def opened(profile: Profile, folder: Path) -> None:
    """Remember the profile with which this process works on a folder of results, and the files that it names."""
    _opened[folder.resolve()] = stamp_of(profile, folder.name)


def of_drawn(folder: Path) -> str:
    """Return the stamp of a file that this process writes into a folder of tables or figures.

    It is the stamp of the study that this process has opened there, or else of the profile that the results record.
    """
    here = next((place for place in folder.resolve().parents if place in _opened), None)
    return recorded(folder.parent) if here is None else _opened[here]


def is_recorded(profile: Profile, folder: Path) -> bool:
    """Whether a folder of results records this profile. A record of an earlier version has no stamp."""
    path = folder / paths.EFFECTIVE
    try:
        return path.is_file() and (recorded(folder) or of_profile(str(path))) == stamp_of(profile, folder.name)
    except ProfileError:
        return False


def of_file(path: Path) -> str | None:
    """Return the stamp of a file; None if it has none, as files of earlier versions of emlib, or does not exist."""
    found = STAMP.findall(path.read_bytes()) if path.is_file() else []
    return found[-1].decode() if found else None


def of_job(digest: str, arguments: str) -> str:
    """Return the stamp of a job: of the digest of its content, and of the arguments that choose a slice of it."""
    return f"emlib-job-{digests.of_value([digest, arguments])[:16]}"


def job_of_file(path: Path) -> str | None:
    """Return the stamp of the job that an executed notebook ran as; None if it has none, as of earlier versions."""
    found = JOB.findall(path.read_bytes())
    return found[-1].decode() if found else None
