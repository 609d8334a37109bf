"""Studies with overrides: each has a separate name and folder of results, which contains the whole profile.

    python -m emlib.study.overrides paper-7b "seeds=[0,1,2] datasets=[legal]"     # prints paper-7b+64b0cc

The name works wherever a profile's name does. Results are kept apart from those of the plain profile, but both studies
share the store and so the artefacts that are the same. `runs/<name>/profile.yaml` names the overrides in a comment.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from emlib.config import Profile, load_profile, overridden
from emlib.core import digests, paths
from emlib.core.commands import ends_with_message, profile_parser
from emlib.core.files import write_text
from emlib.core.plain_yaml import as_yaml, read_yaml
from emlib.study import precision, stamps
from emlib.study.ownership import JOINT, base_of, claim, owner_of, refuse_others
from emlib.study.runs import FILES

if TYPE_CHECKING:
    import pandas as pd


def study_with(name: str, text: str) -> str:
    """Write the profile with these overrides into the folder of a new study, and return the study's name.

    Without overrides, or if they change nothing, returns the profile's own name.

    Raises:
        ProfileError: the profile or the overrides are invalid.
    """
    profile, changes = overridden(name, text)
    refuse_others(name)
    if profile == load_profile(name):
        return name
    study = f"{paths.study_name(name)}{JOINT}{digests.of_value(changes)[:6]}"
    claim(name, study)
    folder = paths.runs() / study
    if precision.recorded(folder) is not None:  # what `Study.record` writes: else the study seems changed
        profile = precision.resolved(profile, study)
    keep(profile, folder, f"The profile '{name}' with SET: {' '.join(text.split())}")
    return study


def keep(profile: Profile, folder: Path, comment: str) -> None:
    """Write the profile into a folder of results, under a comment and its stamp, unless it is there already.

    The results of another profile are removed before, so that they never stand beside this one.
    """
    path, data, stamp = folder / paths.EFFECTIVE, as_kept(profile), stamps.stamp_of(profile, folder.name)
    if stamps.recorded(folder) == stamp and read_yaml(path) == data:
        return
    if not stamps.is_recorded(profile, folder):
        for name in FILES.values():
            (folder / name).unlink(missing_ok=True)
    write_text(path, f"# {comment}\n# {stamp}\n{as_yaml(data)}")


def as_kept(profile: Profile) -> dict[str, Any]:
    """Return the profile as plain data without its name, which is that of its folder."""
    return profile.model_dump(mode="json", exclude={"name"})


def differences(name: str, profile: Profile) -> pd.DataFrame:
    """Tabulate the values in which a study differs from its plain profile; empty for a plain profile."""
    import pandas as pd  # here, because every slice of the grid imports this module and only notebook 00 needs pandas

    base = owner_of(paths.runs() / name) or paths.yaml_file(paths.PARAMS, base_of(name))
    plain = precision.resolved(load_profile(str(base)), name) if base.is_file() else profile
    before = _flat(as_kept(plain))
    now = _flat(as_kept(profile))
    rows = [(key, before.get(key, "-"), now.get(key, "-")) for key in dict.fromkeys([*before, *now])
            if before.get(key, "-") != now.get(key, "-")]
    return pd.DataFrame(rows, columns=["setting", f"in {base.parent.name}/{base.name}", "in this study"])


def _flat(data: Any, key: str = "") -> dict[str, str]:
    """Return every value by its full key. The key of a list's item is the item's name, if all items have one."""
    if isinstance(data, list) and data and all(isinstance(item, dict) and "name" in item for item in data):
        data = {item["name"]: item for item in data}
    if not isinstance(data, dict) or not data:
        return {key: str(data)}
    return {whole: value for name, inner in data.items()
            for whole, value in _flat(inner, f"{key}.{name}" if key else str(name)).items()}


@ends_with_message()
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = profile_parser("python -m emlib.study.overrides", "Write a study with overrides, and print its name.")
    parser.add_argument("overrides", help="such as 'seeds=[0,1] training.epochs=2'")
    asked = parser.parse_args(arguments)
    print(study_with(asked.profile, asked.overrides))


if __name__ == "__main__":
    main()
