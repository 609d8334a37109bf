"""The owner of a folder of results. Two profiles with one name in two folders would overwrite each other's results.

The folder `runs/<name>/` records the profile that its results are made with: `params/demo.yaml` for a profile of this
repository, so that all checkouts agree, and the absolute path for any other. A record whose profile no longer exists
is ignored, so that a moved profile keeps its results.
"""

from __future__ import annotations

import os
from glob import escape
from pathlib import Path

from emlib.config.loading import profile_path
from emlib.core import paths
from emlib.core.errors import ProfileError
from emlib.core.files import write_text

RECORD = "made_with.txt"
JOINT = "+"  # between a profile's name and the digest of the overrides


def base_of(study: str) -> str:
    """Return the name of the plain study that a study with overrides belongs to; any other study's own name."""
    return study.partition(JOINT)[0]


def owner_of(folder: Path) -> Path | None:
    """Return the profile that a folder of results belongs to; None if it has no record, or the profile is gone."""
    record = folder / RECORD
    text = record.read_text(encoding="utf-8").strip() if record.is_file() else ""
    path = paths.PARAMS.parent / text  # an absolute path replaces the folder
    return path if text and path.is_file() else None


def refuse_others(profile: str, study: str | None = None) -> None:
    """Refuse a profile whose results would go into the folder of another profile.

    `study` is the name of the folder; None for the profile's own name.

    Raises:
        ProfileError: the folder belongs to another profile; it names both files, and what to do.
    """
    path, name = profile_path(profile), study or paths.study_name(profile)
    # Studies with overrides share the profile's budget for the judge, so that their folders count as well.
    for folder in (paths.runs() / name, *paths.runs().glob(f"{escape(name)}{JOINT}*")):
        owner = owner_of(folder)
        if not (owner is None or _is_kept_in(path, paths.runs() / name) or owner.samefile(path)):
            raise ProfileError(
                f"{path.absolute()}: its results would go into {paths.runs() / name}, but {folder} has those of "
                f"{owner}. Give one of the two profiles another name, with a line such as name: {path.stem}_2")


def claim(profile: str, study: str | None = None) -> None:
    """Record that a folder of results belongs to a profile, if that is not recorded yet; see `refuse_others`."""
    refuse_others(profile, study)
    path, folder = profile_path(profile).absolute(), paths.runs() / (study or paths.study_name(profile))
    if owner_of(folder) is None and not _is_kept_in(path, folder):
        inside = path.is_relative_to(paths.PARAMS)
        write_text(folder / RECORD, f"{path.relative_to(paths.PARAMS.parent) if inside else os.path.normpath(path)}\n")
        refuse_others(profile, study)  # another process may have claimed it in between


def _is_kept_in(path: Path, folder: Path) -> bool:
    """Whether a profile is the one stored in this folder of results, as for a study with overrides."""
    return path.name == paths.EFFECTIVE and path.resolve().parent == folder.resolve()
