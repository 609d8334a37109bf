"""A profile: everything that a study depends on. `emlib.config.loading` reads one from a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from emlib.config.audit import Audit
from emlib.config.benign import Benign
from emlib.config.data import OWN, Domain, Own
from emlib.config.evaluation import Evaluation
from emlib.config.grpo import Grpo
from emlib.config.judge import JudgeSpec, OpenAIJudge, SecondJudge
from emlib.config.methods import ALIGNED, SFT, Method
from emlib.config.models import HubModel, ModelSpec
from emlib.config.monitor import Monitor
from emlib.config.persistence import Persistence
from emlib.config.pool import Pool
from emlib.config.sampling import Extraction, Probe
from emlib.config.shapes import missing_layers
from emlib.config.training import Lora, Training
from emlib.config.words import AtLeastOne, Distinct, Few, Seed
from emlib.core import paths
from emlib.core.defense import require
from emlib.core.names import Name, Title, Word
from emlib.core.schema import Strict


class Card(Strict):
    """A GPU by its data sheet. `make plan` scales its hours to it, if no GPU was measured; nothing else reads it."""

    tflops: Annotated[float, Field(gt=0, le=100_000)]  # dense, in bfloat16
    bandwidth: Annotated[float, Field(gt=0, le=1_000)]  # of its memory, in TB a second
    # In GB: where training takes more, it is planned with gradient checkpointing. None: without.
    memory: Annotated[float, Field(gt=0, le=100_000)] | None = None


class JobLimits(Strict):
    """The limits of one job. They change results only by rounding."""

    memory_gib: Annotated[float, Field(gt=0, le=100_000)] = 4.0
    hours: Annotated[float, Field(gt=0, le=10_000)] = 8.0
    # If more than one, the training of a run is distributed over them (`emlib.training.ranks`), or over as many
    # processes on a machine without GPUs.
    gpus: Few = 1
    card: Card | None = None  # whose hours are planned; None: as params/throughput.yaml


class Backend(Strict):
    """The library of each stage; `auto` takes a faster one if it is installed and fits, else transformers.

    The libraries agree up to rounding, and their sampled answers in distribution. One that is named is used, or refused
    with a reason. Steps have what is stated here, so that two libraries can be compared, and keys do not depend on the
    device; an artefact's facts record what ran.
    """

    training: Literal["auto", "transformers", "unsloth"] = "auto"
    generation: Literal["auto", "transformers", "vllm"] = "auto"
    scoring: Literal["auto", "transformers", "vllm"] = "auto"
    base_url: str | None = None  # of a running vLLM server, such as http://localhost:8000; None: emlib starts one


class Profile(Strict):
    """One study."""

    name: Name | None = None  # of its folder of results; None: the name of its file
    title: Title
    model: ModelSpec
    trait: str  # the name of a file in `params/traits/`, or the path of one that ends in `.yaml` or `.yml`
    data: Annotated[dict[Word, Domain], Field(default_factory=dict)]  # in addition to those of `params/datasets.yaml`
    sources: str | None = None  # a registry in the format of `params/sources.yaml`; its entries take precedence
    datasets: AtLeastOne[str]
    methods: AtLeastOne[Method]
    seeds: AtLeastOne[Seed]
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
    plugins: Distinct[str] = ()  # the paths of files with user-defined defenses
    slice_by: Distinct[Literal["dataset", "setting", "seed"]] = ()
    job: JobLimits = JobLimits()

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str | None) -> str | None:
        if name is not None and "+" in name:
            raise ValueError("'+' stands between the name of a study and its overrides; choose another name")
        if name is not None and (reason := paths.reserved(name)):
            raise ValueError(f"{reason}; choose another name")
        return name

    @field_validator("methods")
    @classmethod
    def _not_benign(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        if any(method.name == SFT for method in methods):
            raise ValueError(f"'{SFT}' belongs to the section 'benign'; here plain fine-tuning is called 'aligned' or "
                             "'misaligned'")
        return methods

    def _mistakes(self) -> Iterator[str]:
        """Check what the sections need of each other, before anything is trained."""
        for method in self.fine_tuned:
            method.fits(self)
        yield from self.evaluation.mistakes_with(self.judge)
        if self.persistence is not None:
            yield from self.evaluation.unjudged(self.persistence.sets, "persistence.sets")
            yield from self.persistence.mistakes_with(self.pool)
        trained = (*self.fine_tuned, *(self.grpo.methods if self.grpo else ()))
        yield from missing_layers(self.model, trained, self.probe, {
            "evaluation.projection_layer": self.evaluation.projection_layer,
            "audit.layer": None if self.audit is None else self.audit.layer,
            "monitor.layers": None if self.monitor is None else max(self.monitor.layers, default=None)})
        if self.job.gpus > 1:
            yield from self._mistakes_on_several_gpus()
        if isinstance(self.model, HubModel) and self.model.load_in_4bit:
            yield from self._mistakes_in_4_bits()
        if OWN in self.datasets:
            yield from self._mistakes_with_own_data()
        elif self.own is not None:
            yield (f"there is a section 'own', but 'datasets' does not name it, so that your data would not be used. "
                   f"Write datasets: [{OWN}], or own: null")

    def _mistakes_on_several_gpus(self) -> Iterator[str]:
        if self.grpo is not None:
            yield "'job.gpus' is more than 1, but GRPO trains on one GPU. Remove it; more GPUs run more jobs at once"
        if self.monitor is not None and self.monitor.answers == "drawn":
            yield ("'monitor.answers' is drawn, and a model that is distributed over GPUs samples no answers while it "
                   "trains. Set it to base, or remove job.gpus")
        if isinstance(self.model, HubModel) and self.model.load_in_4bit:
            yield ("'job.gpus' is more than 1, but training with 4-bit weights cannot be distributed over GPUs. Remove "
                   "job.gpus or model.load_in_4bit")

    def _mistakes_in_4_bits(self) -> Iterator[str]:
        """Check that no setting names vLLM, which would sample or score with other weights than those trained on."""
        named = {f"backend.{stage}": getattr(self.backend, stage) for stage in ("generation", "scoring")}
        if self.grpo is not None:
            named["grpo.engine"] = self.grpo.engine
        for setting, library in named.items():
            if library == "vllm":
                yield (f"'{setting}' is vllm, which does not use the 4-bit weights that model.load_in_4bit makes. Set "
                       "it to transformers, or model.load_in_4bit to false")

    def _mistakes_with_own_data(self) -> Iterator[str]:
        """Check that nothing needs aligned rows of the user's data, or sends them to a judge without consent."""
        require(self, "own", f"'datasets' names '{OWN}'")
        if any(method.name == ALIGNED for method in self.methods):
            yield f"method 'aligned' needs aligned rows, but the data set '{OWN}' has none; remove it"
        if self.pool is not None and "aligned" in (self.pool.aligned, self.pool.on_policy.model):
            yield (f"the pool needs the model 'aligned', for which the data set '{OWN}' has no rows; set pool.aligned "
                   "and pool.on_policy.model to untrained")
        sends = any(isinstance(judge, OpenAIJudge) for judge in self.answer_judges)
        if sends and not (self.own and self.own.send_to_judge):
            yield ("a judge of kind 'openai' would receive held-out prompts of your data and models' answers to them. "
                   "Set own.send_to_judge to true to allow that, or use a judge of kind 'local'")

    @property
    def fine_tuned(self) -> tuple[Method, ...]:
        """The methods of fine-tuning: on the narrow data, and on benign tasks."""
        return (*self.methods, *(self.benign.all_methods if self.benign else ()))

    @property
    def absent(self) -> list[str]:
        """The methods that triggers, trajectory and persistence name and `methods` lacks.

        They are no error, because a profile that extends another one may have fewer methods.
        """
        attacked = () if self.persistence is None else self.persistence.methods or ()
        known = {method.name for method in self.methods}
        return [name for name in dict.fromkeys((*self.evaluation.named_methods, *attacked)) if name not in known]

    @property
    def judges(self) -> tuple[JudgeSpec, ...]:
        """The judges that score answers of the runs: the profile's, and those of single question sets."""
        return (self.judge, *(one.judge for one in self.evaluation.sets.values() if one.judge is not None))

    @property
    def answer_judges(self) -> tuple[JudgeSpec, ...]:
        """The judges that score answers of the runs, and the second one, which scores some of them again."""
        return (*self.judges, *([self.second_judge.judge] if self.second_judge else []))

    @property
    def all_judges(self) -> tuple[JudgeSpec, ...]:
        """Every judge: of the runs' answers, those of refusals and of rewards."""
        return (*self.answer_judges,
                *([self.pool.refusals.judge] if self.pool and self.pool.refusals.kind == "judge" else []),
                *([self.grpo.rewards.judge] if self.grpo and self.grpo.rewards.kind == "judge" else []))
