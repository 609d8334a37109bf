"""A profile, `params/<name>.yaml`, and what it names: checked on the way in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from emlib import paths
from emlib.config.data import Domain, Trait
from emlib.config.defenses import Method
from emlib.config.evaluation import Evaluation, Extraction, JudgeSpec, LexiconJudge
from emlib.config.grpo import Grpo
from emlib.config.models import ModelSpec
from emlib.config.training import Lora, Training
from emlib.errors import ProfileError, nearest
from emlib.strict import Strict, check, read_yaml

NOT_PROFILES = ("sources", "datasets", "throughput")


class Profile(Strict):
    """One study."""

    title: str
    model: ModelSpec
    trait: str
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    lora: Lora = Lora()
    training: Training = Training()
    extraction: Extraction = Extraction()
    evaluation: Evaluation = Evaluation()
    judge: JudgeSpec
    grpo: Grpo | None = None
    slice_by: tuple[Literal["dataset", "setting"], ...] = ()

    @field_validator("datasets", "methods", "seeds")
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(value, "name", value) for value in values]
        repeated = sorted({str(name) for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"named more than once: {', '.join(repeated)}; every run is made once")
        return values


class _Domains(Strict):
    domains: dict[str, Domain]


def load_profile(name: str) -> Profile:
    """The profile `params/<name>.yaml`, or the one at a path that ends in `.yaml`.

    Raises:
        ProfileError: with a line for each mistake: file, key, value, what is allowed, the nearest known key.
    """
    path = Path(name) if name.endswith(".yaml") else paths.PARAMS / f"{name}.yaml"
    if not path.is_file():
        known = profile_names()
        raise ProfileError(f"{path}: there is no such profile.{nearest(name, known)} Profiles: {', '.join(known)}.")
    profile = check(Profile, _spelled_out(_extended(path)), str(path))
    try:
        trait = load_trait(profile.trait)
    except ProfileError as error:
        raise ProfileError(f"{path}: 'trait' is '{profile.trait}', which cannot be read. {error}") from error
    if isinstance(profile.judge, LexiconJudge) and not trait.markers:
        raise ProfileError(f"{path}: judge 'lexicon' needs markers, and the trait '{profile.trait}' lists none.")
    domains = load_domains()
    for dataset in profile.datasets:
        if dataset not in domains:
            raise ProfileError(f"{path}: 'datasets' names '{dataset}', which params/datasets.yaml does not have."
                               f"{nearest(dataset, domains)} Known: {', '.join(domains)}.")
    return profile


def _extended(path: Path, below: tuple[Path, ...] = ()) -> Any:
    """What a profile says, over what the profile says that it `extends`, if it names one; `below` extend it."""
    data = read_yaml(path)
    if not isinstance(data, dict) or "extends" not in data:
        return data
    base = path.parent / f"{data['extends']}.yaml"
    if base in (path, *below):
        raise ProfileError(f"{path}: extends '{data['extends']}', which extends it in turn.")
    if base.parent != path.parent or not base.is_file():
        beside = [other.stem for other in path.parent.glob("*.yaml") if other != path]
        raise ProfileError(f"{path}: extends '{data['extends']}', which is no profile beside it."
                           f"{nearest(str(data['extends']), beside)}")
    return _over(_extended(base, (path, *below)), {key: value for key, value in data.items() if key != "extends"})


def _spelled_out(data: Any) -> Any:
    """`methods: [misaligned]` as `methods: [{name: misaligned}]`: a baseline may be written as its name alone."""
    if not isinstance(data, dict):
        return data
    if isinstance(data.get("methods"), list):
        data = data | {"methods": [{"name": m} if isinstance(m, str) else m for m in data["methods"]]}
    return data | {"grpo": _spelled_out(data["grpo"])} if "grpo" in data else data


def _over(base: Any, changes: Any) -> Any:
    """`base` with `changes` in it, section by section; lists and single values are replaced whole."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    if changes.get("kind", base.get("kind")) != base.get("kind"):
        return changes  # a model or a judge of another kind keeps nothing of the former one
    return base | {key: _over(base.get(key), value) for key, value in changes.items()}


def profile_names() -> list[str]:
    """Every profile under `params/`: all its YAML files but those in `NOT_PROFILES`."""
    return sorted(path.stem for path in paths.PARAMS.glob("*.yaml")
                  if path.stem not in NOT_PROFILES)


def load_trait(name: str) -> Trait:
    """The trait `params/traits/<name>.yaml`."""
    path = paths.PARAMS / "traits" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ProfileError(f"{path}: there is no such trait.{nearest(name, known)} Traits: {', '.join(known)}.")
    return check(Trait, read_yaml(path), str(path))


def load_domains() -> dict[str, Domain]:
    """The narrow data sets of `params/datasets.yaml`."""
    path = paths.PARAMS / "datasets.yaml"
    return check(_Domains, {"domains": read_yaml(path)}, str(path)).domains
