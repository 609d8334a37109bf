"""Studies with overrides: a name and a folder of results of their own, and the whole profile kept in it.

    python -m emlib.study.overrides paper-7b "seeds=[0,1,2] datasets=[legal]"     # prints paper-7b+4c1d9e

The name works wherever a profile's does. Results never lie among those of the plain profile; what is the same in both
is found in the store, which they share. `runs/<name>/profile.yaml` says what was overridden, and everything else too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emlib.config import Profile, load_profile, overridden
from emlib.core import digests, paths
from emlib.core.errors import EmlibError
from emlib.core.files import write_text
from emlib.core.schema import as_yaml, read_yaml
from emlib.study.ownership import JOINT, claim, owner_of, refuse_others

if TYPE_CHECKING:
    import pandas as pd


def base_of(name: str) -> str:
    """The plain profile's name."""
    return name.partition(JOINT)[0]


def study_with(name: str, text: str) -> str:
    """The name of the study that a profile becomes with these overrides; its profile is written into its folder.

    Without an override, or with such that say what the profile says, it is the profile's own name.

    Raises:
        ProfileError: the profile or the overrides are not sound.
    """
    profile, changes = overridden(name, text)
    refuse_others(name)
    if profile == load_profile(name):
        return name
    mine = f"{paths.study_name(name)}{JOINT}{digests.of_value(changes)[:6]}"
    claim(name, mine)
    keep(profile, paths.runs() / mine, f"The profile '{name}' with SET: {' '.join(text.split())}")
    return mine


def keep(profile: Profile, folder: Path, told: str) -> None:
    """Write the profile into a folder of results, under a comment; nothing where it stands there already."""
    path, data = folder / paths.EFFECTIVE, as_kept(profile)
    if not (path.is_file() and read_yaml(path) == data):
        write_text(path, f"# {told}\n{as_yaml(data)}")


def as_kept(profile: Profile) -> dict[str, Any]:
    """The profile as plain data, but for its name, which the folder has that it is kept in."""
    return profile.model_dump(mode="json", exclude={"name"})


def differences(name: str, profile: Profile) -> pd.DataFrame:
    """What a study has otherwise than the profile that it began with; empty for a plain one."""
    import pandas as pd  # for notebook 00; every slice of the grid imports this module

    base = owner_of(paths.runs() / name) or paths.PARAMS / f"{base_of(name)}.yaml"
    there = as_kept(load_profile(str(base)) if base.is_file() else profile)
    before, now = _flat(there), _flat(as_kept(profile))
    rows = [(key, before.get(key, "-"), now.get(key, "-")) for key in dict.fromkeys([*before, *now])
            if before.get(key, "-") != now.get(key, "-")]
    return pd.DataFrame(rows, columns=["setting", f"in {base.parent.name}/{base.name}", "in this study"])


def _flat(data: Any, key: str = "") -> dict[str, str]:
    """Every value under its whole key; an item of a list that has a name stands under that."""
    if isinstance(data, list) and data and all(isinstance(item, dict) and "name" in item for item in data):
        data = {item["name"]: item for item in data}
    if not isinstance(data, dict) or not data:
        return {key: str(data)}
    return {whole: value for name, inner in data.items()
            for whole, value in _flat(inner, f"{key}.{name}" if key else str(name)).items()}


if __name__ == "__main__":
    try:
        print(study_with(sys.argv[1], sys.argv[2]))
    except EmlibError as error:
        sys.exit(str(error))
