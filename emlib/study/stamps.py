"""Stamps: with which version of its profile a file in a folder of results was made.

A profile may be edited after it has run. Until its notebooks have run again, the folder has files of both versions, and
those of the former one must not be stated as results of the profile. So a table has a stamp, a digest of the profile,
in a comment of its LaTeX form; a figure and an executed notebook have it in their metadata. The files of `RESULTS` need
none: they are removed when another profile is recorded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from emlib.config import Profile, load_profile
from emlib.core import digests, paths
from emlib.core.errors import ProfileError
from emlib.core.plain_yaml import read_yaml
from emlib.study import precision

RESULTS = ("results.csv", "benign.csv", "grpo.csv")  # of runs on narrow data, on benign tasks, of GRPO
STAMP = re.compile(rb"emlib-profile-[0-9a-f]{16}")
NO_RESULT = ("job", "title")  # parts of a profile that change no result


def as_kept(profile: Profile) -> dict[str, Any]:
    """Return the profile as plain data without its name, which is that of its folder."""
    return profile.model_dump(mode="json", exclude={"name"})


def stamp_of(kept: Mapping[str, Any]) -> str:
    """Return the stamp of a profile in the form of `as_kept`."""
    digest = digests.of_value({name: value for name, value in kept.items() if name not in NO_RESULT})
    return f"emlib-profile-{digest[:16]}"


def of_profile(name: str) -> str:
    """Return the stamp of a profile, given by the name of a file in `params/` or by a path."""
    return stamp_of(as_kept(precision.resolved(load_profile(name), paths.study_name(name))))


def recorded(folder: Path) -> str:
    """Return the stamp of the profile that a folder of results records; empty without a record."""
    path = folder / paths.EFFECTIVE
    return _stamp_in(path, digests.of_file(path)) if path.is_file() else ""


@lru_cache(maxsize=8)
def _stamp_in(path: Path, _digest: str) -> str:
    return stamp_of(read_yaml(path))


def is_recorded(profile: Profile, folder: Path) -> bool:
    """Whether a folder of results records this profile. A record of an earlier version lacks newer options."""
    path, now = folder / paths.EFFECTIVE, stamp_of(as_kept(precision.resolved(profile, folder.name)))
    try:
        return path.is_file() and (recorded(folder) == now or of_profile(str(path)) == now)
    except ProfileError:
        return False


def present(profile: Profile, folder: Path) -> frozenset[str]:
    """Return the stamps of files in a folder of results that were made with this profile."""
    return frozenset([stamp_of(as_kept(profile)), *([recorded(folder)] if is_recorded(profile, folder) else [])])


def of_file(path: Path) -> str | None:
    """Return the stamp of a file; None if it has none, as files of earlier versions of emlib, or does not exist."""
    found = STAMP.findall(path.read_bytes()) if path.is_file() else []
    return found[-1].decode() if found else None
