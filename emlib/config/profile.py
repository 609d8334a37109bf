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
    """One study. `plugins` are files with defenses of one's own, relative to the profile."""

    title: str
    model: ModelSpec
    trait: str
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
    """What a profile says, with what it extends, and with everything spelled out; not checked yet."""
    return spelled_out(_extended(path))


def with_plugins(data: Any, folder: Path) -> Any:
    """What a profile in `folder` says, with its plugins run and their paths spelled out."""
    if not isinstance(data, dict) or not isinstance(data.get("plugins"), list):
        return data
    files = [str((folder / str(name)).resolve()) for name in data["plugins"]]
    if not are_unknown_kinds_allowed():
        plugins.load(files)
    return data | {"plugins": files}


def sound(data: Any, path: str) -> Profile:
    """What a profile says, checked; `path` is what mistakes are told of.

    Raises:
        ProfileError: as `load_profile`.
    """
    profile = check(Profile, with_plugins(data, Path(path).parent), path)
    try:
        trait = load_trait(profile.trait)
    except ProfileError as error:
        raise ProfileError(f"{path}: 'trait' is '{profile.trait}', which cannot be read. {error}") from error
    judges = [profile.judge, *([profile.second_judge.judge] if profile.second_judge else [])]
    if any(isinstance(judge, LexiconJudge) for judge in judges) and not trait.markers:
        raise ProfileError(f"{path}: judge 'lexicon' needs markers, and the trait '{profile.trait}' lists none.")
    domains = load_domains()
    pool = profile.pool
    trained = [] if pool is None else [
        *(("pool.scorers", scorer.domain) for scorer in pool.scorers or () if scorer.folder is None),
        *(("pool.others", domain) for domain in pool.others or ())]
    for key, dataset in [*(("datasets", dataset) for dataset in profile.datasets), *trained]:
        if dataset not in (*domains, OWN):
            raise ProfileError(f"{path}: '{key}' names '{dataset}', which params/datasets.yaml does not have."
                               f"{nearest(dataset, domains)} Known: {', '.join(domains)}.")
    return profile


def _extended(path: Path, below: tuple[Path, ...] = ()) -> Any:
    """What a profile says, over what the profile says that it `extends`, if it names one; `below` extend it."""
    data = read_yaml(path)
    if not isinstance(data, dict) or "extends" not in data:
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
