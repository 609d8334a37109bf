"""Loads and validates a profile, `params/<name>.yaml`, and the files that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from emlib.config.audit import Audit
from emlib.config.backends import Backend
from emlib.config.benign import Benign
from emlib.config.data import Domain, Trait
from emlib.config.defenses import SFT, Method
from emlib.config.evaluation import Extraction, Probe
from emlib.config.grpo import Grpo
from emlib.config.judge import JudgeSpec, LexiconJudge, OpenAIJudge, SecondJudge
from emlib.config.judge_files import with_judges
from emlib.config.layers import refuse_missing_layers
from emlib.config.models import HubModel, ModelSpec
from emlib.config.monitor import Monitor
from emlib.config.own import OWN, Own
from emlib.config.persistence import Persistence
from emlib.config.pool import Pool
from emlib.config.providers import OF_SERVER
from emlib.config.questions import Evaluation
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
from emlib.config.training import Lora, Training
from emlib.config.words import Few, Seed, no_repeats
from emlib.core import paths, plugins
from emlib.core.errors import ProfileError, nearest, shortened
from emlib.core.name_types import Name, Title, Word
from emlib.core.names import ALLOWED, is_name
from emlib.core.of_kind import are_unknown_kinds_allowed
from emlib.core.plain_yaml import read_yaml
from emlib.core.schema import Strict, check

NAMED_FREELY = ("sets", "data")  # sections whose keys are names of the user
NOT_PROFILES = ("sources", "datasets", "models", "throughput", "prices")


class JobLimits(Strict):
    """The limits of one job: memory in GiB, time in hours, GPUs. They change results only by rounding.

    With more than one GPU, the training of a run is distributed over them (`emlib.training.ranks`), or over as many
    processes on a machine without GPUs.
    """

    memory_gib: Annotated[float, Field(gt=0, le=100_000)] = 4.0
    hours: Annotated[float, Field(gt=0, le=10_000)] = 8.0
    gpus: Few = 1


class Profile(Strict):
    """One study.

    Attributes:
        name: the name of its folder of results; None: the name of its file.
        trait: the name of a file in `params/traits/`, or the path of one that ends in `.yaml` or `.yml`.
        data: data sets in addition to those of `params/datasets.yaml`, for use in `datasets`.
        sources: the path of a registry in the format of `params/sources.yaml`; its entries take precedence.
        plugins: the paths of files with user-defined defenses.
    """

    name: Name | None = None
    title: Title
    model: ModelSpec
    trait: str
    data: Annotated[dict[Word, Domain], Field(default_factory=dict)]
    sources: str | None = None
    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    lora: Lora = Lora()
    training: Training = Training()
    monitor: Monitor | None = None
    extraction: Extraction = Extraction()
    probe: Probe = Probe()
    pool: Pool | None = None
    evaluation: Evaluation = Evaluation()
    persistence: Persistence | None = None
    judge: JudgeSpec
    second_judge: SecondJudge | None = None
    benign: Benign | None = None
    grpo: Grpo | None = None
    own: Own | None = None
    audit: Audit | None = None
    backend: Backend = Backend()
    plugins: tuple[str, ...] = ()
    slice_by: tuple[Literal["dataset", "setting", "seed"], ...] = ()
    job: JobLimits = JobLimits()

    @field_validator("datasets", "methods", "seeds", "plugins", "slice_by")
    @classmethod
    def _no_repeats(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return no_repeats(values)

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str | None) -> str | None:
        if name is not None and "+" in name:
            raise ValueError("'+' stands between the name of a study and its overrides; choose another name")
        if name in (paths.STORE, paths.LABELS):
            raise ValueError(f"the folder runs/{name} is that of all studies; choose another name")
        return name

    @field_validator("methods")
    @classmethod
    def _not_benign(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        if any(method.name == SFT for method in methods):
            raise ValueError(f"'{SFT}' belongs to the section 'benign'; here plain fine-tuning is called 'aligned' or "
                             "'misaligned'")
        return methods

    @model_validator(mode="after")
    def _defenses_fit(self) -> Profile:
        """Check what each defense needs of the profile, before anything is trained for it."""
        for method in (*self.methods, *(() if self.benign is None else self.benign.all_methods)):
            method.fits(self)
        return self

    @model_validator(mode="after")
    def _evaluation_fits(self) -> Profile:
        self.evaluation.fits(self.judge)
        if self.persistence is not None:
            self.evaluation.refuse_unjudged(self.persistence.sets, "persistence.sets")
        return self

    @property
    def absent(self) -> list[str]:
        """The methods that triggers, trajectory and persistence name and `methods` lacks.

        They are no error, because a profile that extends another one may have fewer methods.
        """
        attacked = () if self.persistence is None else self.persistence.methods or ()
        known = {method.name for method in self.methods}
        return [name for name in dict.fromkeys((*self.evaluation.named, *attacked)) if name not in known]

    @property
    def judges(self) -> tuple[JudgeSpec, ...]:
        """The judges that score answers of the runs: the profile's, and those of single question sets."""
        return (self.judge, *(one.judge for one in self.evaluation.sets.values() if one.judge is not None))

    @property
    def all_judges(self) -> tuple[JudgeSpec, ...]:
        """Every judge: of the runs' answers, the second one, those of refusals and of rewards."""
        return (*self.judges, *([self.second_judge.judge] if self.second_judge else []),
                *([self.pool.refusals.judge] if self.pool and self.pool.refusals.kind == "judge" else []),
                *([self.grpo.rewards.judge] if self.grpo and self.grpo.rewards.kind == "judge" else []))

    @model_validator(mode="after")
    def _layers_exist(self) -> Profile:
        methods = [*self.methods, *(self.benign.all_methods if self.benign else ()),
                   *(self.grpo.methods if self.grpo else ())]
        refuse_missing_layers(self.model, methods, self.probe, {
            "evaluation.projection_layer": self.evaluation.projection_layer,
            "audit.layer": None if self.audit is None else self.audit.layer,
            "monitor.layers": None if self.monitor is None else max(self.monitor.layers, default=None)})
        return self

    @model_validator(mode="after")
    def _gpus_fit(self) -> Profile:
        if self.job.gpus > 1 and self.grpo is not None:
            raise ValueError("'job.gpus' is more than 1, but GRPO trains on one GPU. Remove it; more GPUs run more "
                             "jobs at once")
        if self.job.gpus > 1 and self.monitor is not None and self.monitor.answers == "drawn":
            raise ValueError("'monitor.answers' is drawn, and a model that is distributed over GPUs samples no answers "
                             "while it trains. Set it to base, or remove job.gpus")
        if self.job.gpus > 1 and isinstance(self.model, HubModel) and self.model.load_in_4bit:
            raise ValueError("'job.gpus' is more than 1, but training with 4-bit weights cannot be distributed over "
                             "GPUs. Remove job.gpus or model.load_in_4bit")
        return self

    @model_validator(mode="after")
    def _own_has_one_side(self) -> Profile:
        """Check that nothing needs aligned rows of the user's data, or sends them to a judge without consent."""
        if OWN not in self.datasets:
            return self
        if self.own is None:
            raise ValueError(f"'datasets' names '{OWN}', but there is no section 'own'. Add one, such as own: {{file: "
                             "my-data.csv}")
        if any(method.name == "aligned" for method in self.methods):
            raise ValueError(f"method 'aligned' needs aligned rows, but the data set '{OWN}' has none; remove it")
        if self.pool is not None and "aligned" in (self.pool.aligned, self.pool.on_policy.model):
            raise ValueError(f"the pool needs the model 'aligned', for which the data set '{OWN}' has no rows; set "
                             "pool.aligned and pool.on_policy.model to untrained")
        judges = [*self.judges, *([self.second_judge.judge] if self.second_judge else [])]
        if any(isinstance(judge, OpenAIJudge) for judge in judges) and not self.own.send_to_judge:
            raise ValueError("a judge of kind 'openai' would receive held-out prompts of your data and models' answers "
                             "to them. Set own.send_to_judge to true to allow that, or use a judge of kind 'local'")
        return self


class _Domains(Strict):
    domains: dict[Word, Domain]


def load_profile(name: str) -> Profile:
    """Load the profile of that name, or the one at a path that ends in `.yaml` or `.yml`.

    Raises:
        ProfileError: with a line for each mistake: file, key, value, what is allowed, the nearest known key.
    """
    path = profile_path(name)
    return sound(read_profile(path), str(path))


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
    return whole(_extended(path), path)


def whole(data: Any, stated_in: Path) -> Any:
    """Expand shorthand, and make paths absolute that are relative to the folder of `stated_in`."""
    return with_own_registry(with_judges(resolved(spelled_out(data), stated_in), stated_in))


def run_plugins(data: Any) -> None:
    """Run the plugins of a profile, so that their kinds of defense are registered."""
    files = data.get("plugins") if isinstance(data, dict) else None
    if isinstance(files, list) and not are_unknown_kinds_allowed():
        plugins.load(list(map(str, files)))


def sound(data: Any, path: str) -> Profile:
    """Validate the plain data of a profile; messages name `path`.

    Raises:
        ProfileError: as for `load_profile`.
    """
    refuse_missing(data, path)
    run_plugins(data)
    profile = check(Profile, data, path)
    judges = [*profile.judges, *([profile.second_judge.judge] if profile.second_judge else [])]
    for key, name in (("trait", profile.trait), *(("monitor.traits", name) for name in other_traits(profile))):
        try:
            trait = trait_of(profile, name)
        except ProfileError as error:
            raise ProfileError(f"{path}: '{key}' is '{shortened(name)}', which cannot be read. {error}") from error
        if any(isinstance(judge, LexiconJudge) for judge in judges) and not trait.markers:
            raise ProfileError(f"{path}: judge 'lexicon' needs markers, but the trait '{name}' lists none.")
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
    _name_stands_alone(data, path)
    if below:
        data.pop("name", None)
    if "extends" not in data:
        return data
    named, folders = str(data["extends"]), dict.fromkeys([path.parent, paths.PARAMS])
    beside = {name: file for folder in reversed(folders) for name, file in paths.yaml_files(folder).items()}
    base = beside.get(named)
    if base is None:
        raise ProfileError(f"{path}: extends '{shortened(named)}', but there is no such profile beside it or in "
                           f"params/.{nearest(named, [name for name in beside if name != path.stem])}")
    if base in (path, *below):
        raise ProfileError(f"{path}: extends '{named}', which in turn extends this profile. Remove one of the two.")
    return over(_extended(base, (path, *below)), {key: value for key, value in data.items() if key != "extends"})


def _name_stands_alone(data: dict[str, Any], path: Path) -> None:
    """Refuse a name that the Makefile, which reads the file line by line, would not find."""
    if data.get("name") != paths.stated_name(path):
        raise ProfileError(f"{path}: 'name' is {shortened(repr(data.get('name')))}, which cannot name a folder of "
                           f"results. Expected {ALLOWED}, on a separate line that begins with the key, such as name: "
                           "my_study")


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

    `sets: null` and `data: null` leave nothing of what `base` names there.
    """
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    named = "provider" in changes
    if "from" in changes or changes.get("kind", "openai" if named else base.get("kind")) != base.get("kind"):
        return changes  # a model or a judge of another kind, or from a file, replaces the former one completely
    if named:  # of a judge of another provider stays what is the profile's: its budget, its rubric
        base = {key: value for key, value in base.items() if key not in OF_SERVER}
    return base | {key: {} if value is None and key in NAMED_FREELY else over(base.get(key), value)
                   for key, value in changes.items()}


def profile_names() -> list[str]:
    """List the profiles in `params/`: all YAML files but those in `NOT_PROFILES`."""
    return sorted(name for name in paths.yaml_files(paths.PARAMS) if name not in NOT_PROFILES)


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
