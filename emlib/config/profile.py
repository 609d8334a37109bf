"""A profile, `params/<name>.yaml`, and what it names: checked on the way in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from emlib.config.backends import Backend
from emlib.config.benign import Benign
from emlib.config.data import Domain, Trait
from emlib.config.defenses import SFT, Method
from emlib.config.evaluation import Evaluation, Extraction, JudgeSpec, LexiconJudge, OpenAIJudge, Probe, SecondJudge
from emlib.config.grpo import Grpo
from emlib.config.models import HubModel, ModelSpec
from emlib.config.own import OWN, Own
from emlib.config.pool import Pool
from emlib.config.references import (
    absolute,
    is_path,
    of_registry,
    refuse_missing,
    resolved,
    why_missing,
    with_own_registry,
)
from emlib.config.training import Lora, Training
from emlib.config.words import Positive, no_repeats
from emlib.core import paths, plugins
from emlib.core.errors import ProfileError, nearest
from emlib.core.of_kind import are_unknown_kinds_allowed
from emlib.core.schema import Strict, check, read_yaml

NOT_PROFILES = ("sources", "datasets", "models", "throughput", "prices")


class JobLimits(Strict):
    """What one job may take of a machine: memory in GiB, time in hours, GPUs. They change no result but its rounding.

    With more than one GPU a run's training is spread over them (`emlib.training.ranks`); where there is none, over as
    many processes.
    """

    memory_gib: Annotated[float, Field(gt=0)] = 4.0
    hours: Annotated[float, Field(gt=0)] = 8.0
    gpus: Positive = 1


class Profile(Strict):
    """One study.

    Attributes:
        name: what its results are filed under; None: the name of its file.
        trait: the name of a file in `params/traits/`, or the path of one that ends in `.yaml`.
        data: data sets beside those of `params/datasets.yaml`, for `datasets` to name.
        sources: the path of a registry in the form of `params/sources.yaml`, whose entries come before that one's.
        plugins: the paths of files with defenses of one's own.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    title: str
    model: ModelSpec
    trait: str
    data: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Domain], Field(default_factory=dict)]
    sources: str | None = None
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    lora: Lora = Lora()
    training: Training = Training()
    extraction: Extraction = Extraction()
    probe: Probe = Probe()
    pool: Pool | None = None
    evaluation: Evaluation = Evaluation()
    judge: JudgeSpec
    second_judge: SecondJudge | None = None
    benign: Benign | None = None
    grpo: Grpo | None = None
    own: Own | None = None
    backend: Backend = Backend()
    plugins: tuple[str, ...] = ()
    slice_by: tuple[Literal["dataset", "setting", "seed"], ...] = ()
    job: JobLimits = JobLimits()

    @field_validator("datasets", "methods", "seeds")
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return no_repeats(values)

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str | None) -> str | None:
        if name == "store":
            raise ValueError("the folder runs/store holds the artefacts of all studies; choose another name")
        return name

    @field_validator("methods")
    @classmethod
    def _two_sided(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        if any(method.name == SFT for method in methods):
            raise ValueError(f"'{SFT}' is of the section 'benign'; here plain fine-tuning is 'aligned' or 'misaligned'")
        return methods

    @model_validator(mode="after")
    def _defenses_fit(self) -> Profile:
        """Whatever a defense needs of the profile is told, before anything is trained for it."""
        for method in (*self.methods, *(() if self.benign is None else self.benign.all_methods)):
            method.fits(self)
        return self

    @model_validator(mode="after")
    def _spread_where_that_can_be(self) -> Profile:
        if self.job.gpus > 1 and self.grpo is not None:
            raise ValueError("'job.gpus' is more than 1, and GRPO trains on one GPU. Leave it out; more GPUs take more "
                             "runs at once")
        if self.job.gpus > 1 and isinstance(self.model, HubModel) and self.model.load_in_4bit:
            raise ValueError("'job.gpus' is more than 1, and weights in 4 bits cannot be spread over GPUs. Leave out "
                             "one of job.gpus and model.load_in_4bit")
        return self

    @model_validator(mode="after")
    def _own_has_one_side(self) -> Profile:
        """The reader's own data have no aligned counterpart, and go to no judge elsewhere without consent."""
        if OWN not in self.datasets:
            return self
        if self.own is None:
            raise ValueError(f"'datasets' names '{OWN}', and there is no section 'own'. Add one, such as own: {{file: "
                             "my-data.csv}")
        if any(method.name == "aligned" for method in self.methods):
            raise ValueError(f"method 'aligned' needs aligned rows, and the data set '{OWN}' has none; remove it")
        if self.pool is not None and "aligned" in (self.pool.aligned, self.pool.on_policy.model):
            raise ValueError(f"the pool asks for the model 'aligned', which the data set '{OWN}' has no rows for; set "
                             "pool.aligned and pool.on_policy.model to untrained")
        judges = [self.judge, *([self.second_judge.judge] if self.second_judge else [])]
        if any(isinstance(judge, OpenAIJudge) for judge in judges) and not self.own.send_to_judge:
            raise ValueError("a judge of kind 'openai' would be sent held-out prompts of your data, and what models "
                             "say to them. Set own.send_to_judge to true if that may be, or take a judge of kind local")
        return self


class _Domains(Strict):
    domains: dict[str, Domain]


def load_profile(name: str) -> Profile:
    """The profile of that name, or the one at a path that ends in `.yaml`.

    Raises:
        ProfileError: with a line for each mistake: file, key, value, what is allowed, the nearest known key.
    """
    path = profile_path(name)
    return sound(read_profile(path), str(path))


def profile_path(name: str) -> Path:
    """The file of a profile: `params/<name>.yaml`, a path that ends in `.yaml`, or what a study with overrides kept.

    Raises:
        ProfileError: there is none; the nearest and all names are told.
    """
    path = Path(name) if name.endswith(".yaml") else paths.PARAMS / f"{name}.yaml"
    kept = paths.runs() / name / paths.EFFECTIVE
    if not path.is_file() and "+" in name and kept.is_file():
        return kept
    if not path.is_file():
        known = profile_names()
        raise ProfileError(f"{path}: there is no such profile.{nearest(name, known)} Profiles: {', '.join(known)}.")
    return path


def read_profile(path: Path) -> Any:
    """What a profile says, with what it extends, everything spelled out and paths absolute; not checked yet."""
    return whole(_extended(path), path)


def whole(data: Any, stated_in: Path) -> Any:
    """Spell everything out, and make paths absolute that are meant from the folder of `stated_in`."""
    return with_own_registry(resolved(spelled_out(data), stated_in))


def run_plugins(data: Any) -> None:
    """Run the plugins of a profile, so that the kinds of defense that they define are known."""
    files = data.get("plugins") if isinstance(data, dict) else None
    if isinstance(files, list) and not are_unknown_kinds_allowed():
        plugins.load(list(map(str, files)))


def sound(data: Any, path: str) -> Profile:
    """What a profile says, checked; `path` is what mistakes are told of.

    Raises:
        ProfileError: as `load_profile`.
    """
    refuse_missing(data, path)
    run_plugins(data)
    profile = check(Profile, data, path)
    try:
        trait = trait_of(profile)
    except ProfileError as error:
        raise ProfileError(f"{path}: 'trait' is '{profile.trait}', which cannot be read. {error}") from error
    judges = [profile.judge, *([profile.second_judge.judge] if profile.second_judge else [])]
    if any(isinstance(judge, LexiconJudge) for judge in judges) and not trait.markers:
        raise ProfileError(f"{path}: judge 'lexicon' needs markers, and the trait '{profile.trait}' lists none.")
    _data_sets_are_known(profile, path)
    return profile


def _data_sets_are_known(profile: Profile, path: str) -> None:
    """Refuse a data set that nothing describes, and one that two files describe."""
    shelf = load_domains()
    for name in profile.data:
        if name in (*shelf, OWN):
            raise ProfileError(f"{path}: 'data' describes '{name}', which is a data set of params/datasets.yaml "
                               "already, or of the section 'own'. Give yours another name.")
    domains = (*shelf, *profile.data)
    pool = profile.pool
    trained = [] if pool is None else [
        *(("pool.scorers", scorer.domain) for scorer in pool.scorers or () if scorer.folder is None),
        *(("pool.others", domain) for domain in pool.others or ())]
    for key, dataset in [*(("datasets", dataset) for dataset in profile.datasets), *trained]:
        if dataset not in (*domains, OWN):
            raise ProfileError(f"{path}: '{key}' names '{dataset}', which neither the section 'data' nor "
                               f"params/datasets.yaml has.{nearest(dataset, domains)} Known: {', '.join(domains)}.")


def _extended(path: Path, below: tuple[Path, ...] = ()) -> Any:
    """What a profile says, over what the profile says that it `extends`, if it names one; `below` extend it.

    Each file's paths are meant from its own folder. A name is of the one file that states it.
    """
    data = resolved(read_yaml(path), path)
    if not isinstance(data, dict):
        return data
    _name_stands_alone(data, path)
    if below:
        data.pop("name", None)
    if "extends" not in data:
        return data
    named, folders = str(data["extends"]), dict.fromkeys([path.parent, paths.PARAMS])
    beside = {other.stem: other for folder in reversed(folders) for other in folder.glob("*.yaml")}
    base = beside.get(named)
    if base is None:
        raise ProfileError(f"{path}: extends '{named}', which is no profile beside it or in params/."
                           f"{nearest(named, [name for name in beside if name != path.stem])}")
    if base in (path, *below):
        raise ProfileError(f"{path}: extends '{named}', which extends it in turn.")
    return over(_extended(base, (path, *below)), {key: value for key, value in data.items() if key != "extends"})


def _name_stands_alone(data: dict[str, Any], path: Path) -> None:
    """Refuse a name that whoever reads the file line by line (the Makefile) finds otherwise."""
    if data.get("name") != paths.stated_name(path):
        raise ProfileError(f"{path}: 'name' is {data.get('name')!r}, which cannot name a folder of results. Expected "
                           "letters, digits, '.', '_' and '-', on a line of its own that begins with the key, such as "
                           "name: my_study")


def spelled_out(data: Any) -> Any:
    """What may be written as its name alone: `[misaligned]` for `[{name: misaligned}]`, a scorer, a backend."""
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
    """`base` with `changes` in it, section by section; lists and single values are replaced whole."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    if changes.get("kind", base.get("kind")) != base.get("kind"):
        return changes  # a model or a judge of another kind keeps nothing of the former one
    return base | {key: over(base.get(key), value) for key, value in changes.items()}


def profile_names() -> list[str]:
    """Every profile under `params/`: all its YAML files but those in `NOT_PROFILES`."""
    return sorted(path.stem for path in paths.PARAMS.glob("*.yaml")
                  if path.stem not in NOT_PROFILES)


def load_trait(name: str) -> Trait:
    """The trait `params/traits/<name>.yaml`, or that of a file whose path ends in `.yaml`."""
    path = Path(name) if is_path("trait", name) else paths.PARAMS / "traits" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ProfileError(f"{path}: there is no such trait.{nearest(path.stem, known)} Traits: {', '.join(known)}. A "
                           "trait file of your own is named by a path that ends in .yaml.")
    trait = check(Trait, read_yaml(path), str(path))
    if trait.source is None or not is_path("source", trait.source):
        return trait
    found = absolute(trait.source, path)
    if reason := why_missing("source", found):
        raise ProfileError(f"{path}: 'source' {reason}")
    return trait.model_copy(update={"source": found})


def trait_of(profile: Profile) -> Trait:
    """The trait of a profile; its source may be an entry of the profile's own registry."""
    trait = load_trait(profile.trait)
    if trait.source is None:
        return trait
    return trait.model_copy(update={"source": of_registry(trait.source, profile.sources)})


def load_domains() -> dict[str, Domain]:
    """The narrow data sets of `params/datasets.yaml`."""
    path = paths.PARAMS / "datasets.yaml"
    return check(_Domains, {"domains": read_yaml(path)}, str(path)).domains


def domains_of(profile: Profile) -> dict[str, Domain]:
    """The narrow data sets that a profile may name: those of the shelf, and its own."""
    return load_domains() | profile.data
