"""Stamps: with which version of its profile a file in a folder of results was made.

A profile, or a file that it names, may be edited after it has run. Until its notebooks have run again, the folder has
files of both versions, and those of the former one must not be stated as results of the profile. So a table has a
stamp, a digest of all that the profile's results depend on (`contents_of`), in a comment of its LaTeX form; a figure
and an executed notebook have it in their metadata, and the recorded profile in a comment. `results.csv` and its like
need none: they are removed when another profile is recorded.
"""

from __future__ import annotations

import re
from pathlib import Path

from emlib.config import Profile, load_profile
from emlib.core import digests, paths
from emlib.core.errors import ProfileError
from emlib.study import precision
from emlib.study.contents import contents_of

STAMP = re.compile(rb"emlib-profile-[0-9a-f]{16}")


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
