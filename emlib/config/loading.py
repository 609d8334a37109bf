"""Reads profiles: finds the file, expands shorthand, merges it over those that it extends, and validates it.

It also reads the trait and the narrow data sets that a profile names: files of `params/`, or beside the profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emlib.config.data import OWN, Domain, Trait
from emlib.config.judge import LexiconJudge
from emlib.config.judge_files import with_judges
from emlib.config.profile import Profile
from emlib.config.providers import OF_SERVER
from emlib.config.references import (
    absolute,
    exists,
    is_path,
    of_registry,
    refuse_missing,
    resolved,
    why_missing,
    with_own_registry,
)
from emlib.core import paths, plugins
from emlib.core.errors import ProfileError, nearest, shortened
from emlib.core.names import ALLOWED, Word, is_name
from emlib.core.of_kind import unknown_kinds_allowed
from emlib.core.plain_yaml import read_yaml
from emlib.core.schema import Strict, check

NOT_PROFILES = ("sources", "datasets", "models", "throughput", "prices")
NAMED_FREELY = ("sets", "data")  # sections whose keys are names of the user, and which may be empty
WITH_NAMES = ("sets", "contexts", "tasks")  # those of which null removes one name


def load_profile(name: str) -> Profile:
    """Load the profile of that name, or the one at a path that ends in `.yaml` or `.yml`.

    Raises:
        ProfileError: with a line for each mistake: file, key, value, what is allowed, the nearest known key.
    """
    path = profile_path(name)
    return validated(read_profile(path), str(path))


def profile_path(name: str) -> Path:
    """Find a profile's file: `params/<name>.yaml`, a path with such an ending, or the copy of a study with overrides.

    Raises:
        ProfileError: there is none; the message gives the nearest name and all names.
    """
    if not (paths.is_yaml(name) or is_name(name)):
        raise ProfileError(f"'{shortened(name)}' is neither a profile's name, which is made of {ALLOWED}, nor the path "
                           "of one, which ends in .yaml.")
    path = Path(name) if paths.is_yaml(name) else paths.yaml_file(paths.PARAMS, name)
    kept = paths.runs() / name / paths.EFFECTIVE
    if not path.is_file() and "+" in name and kept.is_file():
        return kept
    if not exists(path):
        known = profile_names()
        raise ProfileError(f"{shortened(str(path), 300)}: there is no such profile.{nearest(name, known)} Profiles: "
                           f"{', '.join(known)}.")
    return path


def read_profile(path: Path) -> Any:
    """Read a profile and those that it extends, with shorthand expanded and paths absolute; without validation."""
    return expanded(_extended(path), path)


def expanded(data: Any, stated_in: Path) -> Any:
    """Expand shorthand, and make paths absolute that are relative to the folder of `stated_in`."""
    return with_own_registry(with_judges(resolved(spelled_out(data), stated_in), stated_in))


def spelled_out(data: Any) -> Any:
    """Expand shorthand for methods, scorers and backends: `[misaligned]` means `[{name: misaligned}]`."""
    if not isinstance(data, dict):
        return data
    spelled = dict(data)
    spelled |= {section: spelled_out(data[section]) for section in ("benign", "grpo") if section in data}
    if isinstance(data.get("tasks"), dict):
        spelled["tasks"] = {name: spelled_out(task) for name, task in data["tasks"].items()}
    if isinstance(data.get("backend"), str):
        spelled["backend"] = dict.fromkeys(("training", "generation", "scoring"), data["backend"])
    if isinstance(data.get("methods"), list):
        spelled["methods"] = [{"name": m} if isinstance(m, str) else m for m in data["methods"]]
    pool = data.get("pool")
    if isinstance(pool, dict) and isinstance(pool.get("scorers"), list):
        spelled["pool"] = pool | {"scorers": [{"domain": s} if isinstance(s, str) else s for s in pool["scorers"]]}
    return spelled


def over(base: Any, changes: Any) -> Any:
    """Return `base` with `changes` merged in, section by section; lists and single values are replaced.

    `sets: null` and `data: null` leave nothing of what `base` names there; `sets: {near: null}` removes one name.
    """
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    named = "provider" in changes
    if "from" in changes or changes.get("kind", "openai" if named else base.get("kind")) != base.get("kind"):
        return changes  # a model or a judge of another kind, or from a file, replaces the former one completely
    if named:  # of a judge of another provider stays what is the profile's: its budget, its rubric
        base = {key: value for key, value in base.items() if key not in OF_SERVER}
    base = without_price(base, changes)
    return base | {key: {} if value is None and key in NAMED_FREELY else
                   without_removed(key, base.get(key), over(base.get(key), value)) for key, value in changes.items()}


def without_price(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `base` without its price if `changes` name another model: the price is that of the former."""
    other = isinstance(changes.get("model"), str) and changes["model"] != base.get("model")
    return {key: value for key, value in base.items() if not (other and key == "price")}


def without_removed(section: str, base: Any, merged: Any) -> Any:
    """Return the section `merged` without names that `base` has and that are null, if its keys are names of the user.

    A null under a name that `base` lacks stays, and is refused with the profile: it may be misspelt.
    """
    if section in WITH_NAMES and isinstance(base, dict) and isinstance(merged, dict):
        return {name: value for name, value in merged.items() if value is not None or name not in base}
    return merged


def validated(data: Any, path: str) -> Profile:
    """Validate the plain data of a profile; raise ProfileError as `load_profile` does, with `path` in each message."""
    refuse_missing(data, path)
    files = data.get("plugins") if isinstance(data, dict) else None
    if isinstance(files, list) and not unknown_kinds_allowed.is_set:
        plugins.load(list(map(str, files)))  # which registers their kinds of defense
    profile = check(Profile, data, path)
    stated: dict[str, str] = {}
    for key, name in (("trait", profile.trait), *(("monitor.traits", name) for name in other_traits(profile))):
        try:
            trait = trait_of(profile, name)
        except ProfileError as error:
            raise ProfileError(f"{path}: '{key}' is '{shortened(name)}', which cannot be read. {error}") from error
        if any(isinstance(judge, LexiconJudge) for judge in profile.answer_judges) and not trait.markers:
            raise ProfileError(f"{path}: judge 'lexicon' needs markers, but the trait '{name}' lists none.")
        if trait.name in stated:
            raise ProfileError(f"{path}: '{key}' is '{shortened(name)}', whose name is '{trait.name}', as that of "
                               f"'{shortened(stated[trait.name])}'. The monitor's readings are told apart by these "
                               "names: state another 'name' in one of the files, or remove one of them.")
        stated[trait.name] = name
    _data_sets_are_known(profile, path)
    return profile


def _data_sets_are_known(profile: Profile, path: str) -> None:
    """Refuse a data set that is not defined, and one that is defined twice."""
    shipped = load_domains()
    for name in profile.data:
        if name in (*shipped, OWN):
            raise ProfileError(f"{path}: 'data' defines '{name}', but params/datasets.yaml or the section 'own' "
                               "already does. Choose another name.")
    domains = (*shipped, *profile.data)
    pool = profile.pool
    trained = [] if pool is None else [
        *(("pool.scorers", scorer.domain) for scorer in pool.scorers or () if scorer.folder is None),
        *(("pool.others", domain) for domain in pool.others or ())]
    for key, dataset in [*(("datasets", dataset) for dataset in profile.datasets), *trained]:
        if dataset not in (*domains, OWN):
            raise ProfileError(f"{path}: '{key}' names '{shortened(dataset)}', which neither the section 'data' nor "
                               f"params/datasets.yaml has.{nearest(dataset, domains)} Known: {', '.join(domains)}.")


def _extended(path: Path, below: tuple[Path, ...] = ()) -> Any:
    """Return the data of a profile merged over the profile that it `extends`, if any; `below` extend this one.

    Each file's paths are relative to its folder. `name` is not inherited.
    """
    data = resolved(read_yaml(path), path)
    if not isinstance(data, dict):
        return data
    if data.get("name") != paths.stated_name(path):  # the Makefile reads the file line by line, and would not find it
        raise ProfileError(f"{path}: 'name' is {shortened(repr(data.get('name')))}, which cannot name a folder of "
                           f"results. Expected {ALLOWED}; in quotes what YAML reads as a number or a truth value; on a "
                           "separate line that begins with the key, such as name: my_study")
    if below:
        data.pop("name", None)
    if "extends" not in data:
        return data
    named, folders = str(data["extends"]), dict.fromkeys([path.parent, paths.PARAMS])
    beside = {name: file for folder in reversed(folders) for name, file in paths.yaml_files(folder).items()}
    base = beside.get(named) or {file.name: file for file in beside.values()}.get(named)
    if base is None:
        raise ProfileError(f"{path}: extends '{shortened(named)}', but there is no such profile beside it or in "
                           f"params/.{nearest(named, [name for name in beside if name != path.stem])}")
    if base in (path, *below):
        raise ProfileError(f"{path}: extends '{named}', which in turn extends this profile. Remove one of the two.")
    return over(_extended(base, (path, *below)), {key: value for key, value in data.items() if key != "extends"})


def profile_names() -> list[str]:
    """List the profiles in `params/`: all YAML files but those in `NOT_PROFILES`."""
    return sorted(name for name in paths.yaml_files(paths.PARAMS) if name not in NOT_PROFILES)


class _Domains(Strict):
    domains: dict[Word, Domain]


def load_trait(name: str) -> Trait:
    """Load the trait `params/traits/<name>.yaml`, or the one at a path that ends in `.yaml` or `.yml`."""
    if not (is_path("trait", name) or is_name(name)):
        raise ProfileError(f"'{shortened(name)}' is neither a trait's name, which is made of {ALLOWED}, nor the path "
                           "of a trait file, which ends in .yaml.")
    path = Path(name) if is_path("trait", name) else paths.yaml_file(paths.PARAMS / "traits", name)
    if not exists(path):
        known = sorted(paths.yaml_files(path.parent))
        raise ProfileError(f"{path}: there is no such trait.{nearest(path.stem, known)} Traits: {', '.join(known)}. To "
                           "use another trait file, give its path, which ends in .yaml or .yml.")
    trait = check(Trait, read_yaml(path), str(path))
    if trait.source is None or not is_path("source", trait.source):
        return trait
    found = absolute(trait.source, path)
    if reason := why_missing("source", found):
        raise ProfileError(f"{path}: 'source' {reason}")
    return trait.model_copy(update={"source": found})


def other_traits(profile: Profile) -> tuple[str, ...]:
    """Return the traits beside the profile's own, whose persona vectors its monitor reads."""
    return () if profile.monitor is None else profile.monitor.traits


def trait_of(profile: Profile, name: str | None = None) -> Trait:
    """Load the trait of a profile, or another one; its source may be an entry of the profile's registry."""
    trait = load_trait(name or profile.trait)
    if trait.source is None:
        return trait
    return trait.model_copy(update={"source": of_registry(trait.source, profile.sources)})


def load_domains() -> dict[str, Domain]:
    """Load the narrow fine-tuning data sets of `params/datasets.yaml`."""
    path = paths.PARAMS / "datasets.yaml"
    return check(_Domains, {"domains": read_yaml(path)}, str(path)).domains


def domains_of(profile: Profile) -> dict[str, Domain]:
    """Return the narrow fine-tuning data sets of a profile: those of `params/datasets.yaml` and its `data`."""
    return load_domains() | profile.data
