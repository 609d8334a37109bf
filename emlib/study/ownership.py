"""Which profile a folder of results belongs to: two of one name in two folders would write over each other.

The folder `runs/<name>/` has a record of the profile that its results are made with: `params/demo.yaml` for one that
ships, so that any checkout agrees, and the whole path for one that lies elsewhere. A profile that was moved takes its
results along: a record whose profile is gone binds nobody.
"""

from __future__ import annotations

import os
from glob import escape
from pathlib import Path

from emlib.config.profile import profile_path
from emlib.core import paths
from emlib.core.errors import ProfileError
from emlib.core.files import write_text

RECORD = "made_with.txt"
JOINT = "+"  # between a profile's name and what stands for the overrides


def owner_of(folder: Path) -> Path | None:
    """The profile that a folder of results belongs to; None where nobody has claimed it, or that profile is gone."""
    record = folder / RECORD
    text = record.read_text(encoding="utf-8").strip() if record.is_file() else ""
    path = paths.PARAMS.parent / text  # an absolute path stays what it is
    return path if text and path.is_file() else None


def refuse_others(profile: str, study: str | None = None) -> None:
    """Refuse a profile whose results would be filed among those of another one.

    `study` is what the results are filed under, where that is not the profile's own name.

    Raises:
        ProfileError: naming both files, and what to do.
    """
    path, name = profile_path(profile), study or paths.study_name(profile)
    for folder in (paths.runs() / name, *paths.runs().glob(f"{escape(name)}{JOINT}*")):  # these share a judge's budget
        owner = owner_of(folder)
        if not (owner is None or _is_kept_in(path, paths.runs() / name) or owner.samefile(path)):
            raise ProfileError(
                f"{path.absolute()}: its results would be filed in {paths.runs() / name}, and {folder} holds those of "
                f"{owner}. Give one of the two a name of its own, on a line such as name: {path.stem}_2")


def claim(profile: str, study: str | None = None) -> None:
    """Record that a folder of results belongs to a profile, where that is not recorded yet.

    Raises:
        ProfileError: as `refuse_others`.
    """
    refuse_others(profile, study)
    path, folder = profile_path(profile).absolute(), paths.runs() / (study or paths.study_name(profile))
    if owner_of(folder) is None and not _is_kept_in(path, folder):
        inside = path.is_relative_to(paths.PARAMS)
        write_text(folder / RECORD, f"{path.relative_to(paths.PARAMS.parent) if inside else os.path.normpath(path)}\n")
        refuse_others(profile, study)  # somebody else may have claimed it in this moment


def _is_kept_in(path: Path, folder: Path) -> bool:
    """Whether a profile is the one that a folder of results keeps: a study with overrides."""
    return path.name == paths.EFFECTIVE and path.resolve().parent == folder.resolve()
