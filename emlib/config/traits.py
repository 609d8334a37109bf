"""The trait and the narrow data sets that a profile names: files of `params/`, or beside the profile."""

from __future__ import annotations

from pathlib import Path

from emlib.config.data import Domain, Trait
from emlib.config.profile import Profile
from emlib.config.references import absolute, exists, is_path, of_registry, why_missing
from emlib.core import paths
from emlib.core.errors import ProfileError, nearest, shortened
from emlib.core.names import ALLOWED, Word, is_name
from emlib.core.plain_yaml import read_yaml
from emlib.core.schema import Strict, check


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
