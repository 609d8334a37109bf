"""A study: the runs of a profile, what each needs, and what came out.

A run is one (model, data set, method, setting, seed). It needs an adapter (but for `untrained`), answers to the general
and to the in-domain questions, and a judge's verdicts on them; each is an artefact of the store under a key made of
everything that determines it. This module knows the keys and reads results; `emlib.making` does the work, and is loaded
only where something has to be made, so that looking at a finished study is instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from emlib import paths
from emlib.config import (
    BASELINES,
    Defense,
    Domain,
    Inoculation,
    Method,
    PersonaVector,
    Profile,
    Trait,
    load_domains,
    load_profile,
    load_trait,
)
from emlib.data.domains import NarrowData, in_domain_questions, load_domain
from emlib.data.questions import read_questions
from emlib.data.sources import fetch, registry
from emlib.digests import of_value
from emlib.errors import ProfileError, StoreError, nearest
from emlib.evaluation.rates import Rates, rates
from emlib.models.identity import identity
from emlib.store import Artefact, Store, key_of, read_records, write_text
from emlib.training.records import StepRecord, read_log
from emlib.types import Answer, Example, Question, Verdict

QuestionSet = Literal["general", "in_domain"]
QUESTION_SETS: tuple[QuestionSet, ...] = get_args(QuestionSet)
# Raised when a stage computes something else from the same settings, so that old artefacts are not taken for new ones.
VERSIONS = {"vector": 1, "adapter": 1, "answers": 1, "verdicts": 1}


@dataclass(frozen=True)
class Run:
    """What tells one run from another. `setting` is the method's one swept number, where it has one."""

    model: str
    dataset: str
    method: str
    setting: float | None
    seed: int

    def __str__(self) -> str:
        setting = "" if self.setting is None else f" {self.setting:g}"
        return f"{self.dataset} · {self.method}{setting} · seed {self.seed}"


@dataclass(frozen=True)
class RunResult:
    """What came out of a run."""

    run: Run
    general: Rates
    in_domain: Rates
    train_seconds: float
    train_tokens: int
    run_key: str


class Study:
    """The runs of one profile over one store."""

    def __init__(self, name: str, profile: Profile, store: Store) -> None:
        self.name, self.profile, self.store = name, profile, store

    @property
    def folder(self) -> Path:
        """Where this profile's results, tables, figures and executed notebooks go."""
        return paths.runs() / self.name

    @cached_property
    def trait(self) -> Trait:
        """The trait whose spread is studied."""
        return load_trait(self.profile.trait)

    @cached_property
    def model_identity(self) -> dict[str, Any]:
        """What stands for the model's weights in keys."""
        return identity(self.profile.model)

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """The narrow data sets that `params/datasets.yaml` knows."""
        return load_domains()

    def data(self, dataset: str) -> NarrowData:
        """The aligned and the misaligned rows of one data set, split."""
        if dataset not in self._data:
            self._data[dataset] = load_domain(dataset, self.domains[dataset], locate)
        return self._data[dataset]

    @cached_property
    def _data(self) -> dict[str, NarrowData]:
        return {}

    @cached_property
    def general_questions(self) -> list[Question]:
        """The questions that tell whether the trait has spread."""
        return read_questions(locate(self.profile.evaluation.general))

    def questions(self, run: Run, which: QuestionSet) -> list[Question]:
        """The general questions, or the held-out prompts of the run's own data set."""
        if which == "general":
            return self.general_questions
        return in_domain_questions(self.data(run.dataset), self.profile.evaluation.in_domain_questions)

    def samples(self, which: QuestionSet) -> int:
        """How many answers are asked for each question."""
        evaluation = self.profile.evaluation
        return evaluation.general_samples if which == "general" else evaluation.in_domain_samples

    def runs(self, *, methods: Iterable[str] | None = None, datasets: Iterable[str] | None = None,
             settings: Iterable[float] | None = None, seeds: Iterable[int] | None = None) -> list[Run]:
        """The profile's runs, or the slice of them that is asked for (None: all).

        Raises:
            ProfileError: something is asked for that the profile does not have.
        """
        profile = self.profile
        wanted = {
            "methods": chosen("method", methods, [method.name for method in profile.methods]),
            "datasets": chosen("data set", datasets, profile.datasets),
            "seeds": chosen("seed", seeds, profile.seeds)}
        swept = chosen("setting", settings, sorted({number for method in profile.methods for number in method.sweep}))
        return [Run(profile.model.name, dataset, name, setting, seed)
                for dataset in wanted["datasets"] for name in wanted["methods"]
                for setting in self.method(name).sweep or (None,) if setting is None or setting in swept
                for seed in wanted["seeds"]]

    def method(self, name: str) -> Method:
        """The profile's method of that name."""
        return next(method for method in self.profile.methods if method.name == name)

    def defenses(self, run: Run) -> tuple[Defense, ...]:
        """What protects the run's training, with the swept number set."""
        return self.method(run.method).at(run.setting)

    def steered(self, run: Run) -> bool:
        """Whether the run's training needs a persona vector."""
        return any(isinstance(defense, PersonaVector) for defense in self.defenses(run))

    def train_rows(self, run: Run) -> tuple[Example, ...]:
        """The examples a run trains on."""
        data = self.data(run.dataset)
        rows = (data.aligned if run.method == "aligned" else data.misaligned).train
        rows = rows[:self.profile.training.train_rows]
        for defense in self.defenses(run):
            if isinstance(defense, Inoculation):
                prompt = defense.prompt or self.trait.inoculation_prompt
                rows = tuple(row.under(prompt) for row in rows)
        return rows

    def adapter_settings(self, run: Run) -> dict[str, Any] | None:
        """Everything that determines the run's adapter; None where there is none."""
        if run.method == "untrained":
            return None
        rows = self.train_rows(run)
        return {
            "version": VERSIONS["adapter"], "model": self.model_identity,
            "lora": self.profile.lora.model_dump(mode="json"),
            "training": self.profile.training.model_dump(mode="json", exclude={"checkpoint_every", "train_rows"}),
            "rows": digest_of_rows(rows),
            "defenses": [defense.model_dump(mode="json") for defense in self.defenses(run)],
            "vector": key_of("vector", self.vector_settings()) if self.steered(run) else None, "seed": run.seed}

    def vector_settings(self) -> dict[str, Any]:
        """Everything that determines the trait's persona vectors."""
        prompts = self.trait.model_dump(mode="json", include={"system_prompts", "questions", "markers", "rubric"})
        return {
            "version": VERSIONS["vector"], "model": self.model_identity, "trait": prompts,
            "judge": self.profile.judge.model_dump(mode="json"),
            "extraction": self.profile.extraction.model_dump(mode="json", exclude={"min_pairs"})}

    def vectors(self) -> Artefact | None:
        """The trait's persona vectors, if they were taken."""
        return self.store.find("vector", self.vector_settings())

    def answers_settings(self, run: Run, which: QuestionSet) -> dict[str, Any]:
        """Everything that determines the run's answers to one set of questions."""
        adapter = self.adapter_settings(run)
        return {
            "version": VERSIONS["answers"], "model": self.model_identity,
            "adapter": None if adapter is None else key_of("adapter", adapter),
            "questions": of_value([asdict(question) for question in self.questions(run, which)]),
            "samples": self.samples(which), "sampling": self.profile.evaluation.sampling.model_dump(mode="json"),
            "seed": run.seed}

    def verdicts_settings(self, run: Run, which: QuestionSet) -> dict[str, Any]:
        """Everything that determines the verdicts on those answers."""
        return {
            "version": VERSIONS["verdicts"], "answers": key_of("answers", self.answers_settings(run, which)),
            "judge": self.profile.judge.model_dump(mode="json"), "trait": self.trait.model_dump(mode="json")}

    def run_key(self, run: Run) -> str:
        """One key for all that a run is made of."""
        return key_of("run", {which: self.verdicts_settings(run, which) for which in QUESTION_SETS})

    def adapter(self, run: Run) -> Artefact | None:
        """The run's trained adapter, if it is there."""
        settings = self.adapter_settings(run)
        return None if settings is None else self.store.find("adapter", settings)

    def log(self, run: Run) -> list[StepRecord]:
        """The run's training, step by step; empty where nothing was trained."""
        adapter = self.adapter(run)
        return [] if adapter is None else read_log(adapter.folder)

    def answers(self, run: Run, which: QuestionSet) -> list[Answer] | None:
        """The run's answers, if they are there."""
        found = self.store.find("answers", self.answers_settings(run, which))
        return None if found is None else read_records(found.folder / "answers.jsonl", Answer)

    def verdicts(self, run: Run, which: QuestionSet) -> list[Verdict] | None:
        """The verdicts on the run's answers, if they are there."""
        found = self.store.find("verdicts", self.verdicts_settings(run, which))
        return None if found is None else read_records(found.folder / "verdicts.jsonl", Verdict)

    def result(self, run: Run) -> RunResult | None:
        """What came out of a run, or None where it is not finished."""
        general, in_domain = self.verdicts(run, "general"), self.verdicts(run, "in_domain")
        if general is None or in_domain is None:
            return None
        adapter = self.adapter(run)
        evaluation = self.profile.evaluation
        score = partial(rates, resamples=evaluation.bootstrap)
        seconds, tokens = (adapter.facts["seconds"], adapter.facts["tokens"]) if adapter else (0.0, 0)
        return RunResult(run, score(general), score(in_domain), seconds, tokens, self.run_key(run))

    def complete(self, runs: Sequence[Run]) -> list[RunResult]:
        """Make whatever these runs lack, and say what came out. What is there is not made again."""
        missing = [run for run in runs if self.result(run) is None]
        if missing:
            from emlib.making import Maker  # loads torch and the model

            with Maker(self) as maker:
                for run in missing:
                    maker.make(run)
        self.write_results()
        return [result for run in runs if (result := self.result(run)) is not None]

    def baselines(self) -> list[str]:
        """Those of the three conditions without a defense that the profile runs (Table 2)."""
        return [method.name for method in self.profile.methods if method.name in BASELINES]

    def results(self) -> list[RunResult]:
        """All finished runs of the profile, in its order.

        Raises:
            StoreError: there is none yet.
        """
        found = [result for run in self.runs() if (result := self.result(run)) is not None]
        if not found:
            raise StoreError(f"No run of profile '{self.name}' is finished. Run notebook 04_baselines first, or "
                             f"`make reproduce PROFILE={self.name}`.")
        return found

    def write_results(self) -> Path:
        """`results.csv`: one row a finished run, percentages of what was asked."""
        path = self.folder / "results.csv"
        write_text(path, pd.DataFrame([_row(r) for r in self.results()], columns=RESULT_COLUMNS).to_csv(index=False))
        return path


RESULT_COLUMNS = [
    "model", "dataset", "method", "setting", "seed", "general_misaligned", "general_incoherent", "general_asked",
    "general_scored", "in_domain_misaligned", "in_domain_incoherent", "in_domain_asked", "in_domain_scored",
    "train_seconds", "train_tokens", "run_key"]


def open_study(profile: str) -> Study:
    """The study of a profile: the name of a file in `params/`, or the path of a YAML file."""
    return Study(Path(profile).stem, load_profile(profile), Store(paths.runs() / "store"))


def locate(source: str) -> Path:
    """The file of a source: `demo/...` ships with emlib, anything else is in the registry."""
    if source.startswith("demo/"):
        return paths.DEMO_DATA / source.removeprefix("demo/")
    return fetch(source, paths.cache() / "sources", registry(paths.PARAMS / "sources.yaml"))


def chosen(what: str, asked: Iterable[Any] | None, there: Sequence[Any]) -> list[Any]:
    """Those of `there` that are asked for; None: all.

    Raises:
        ProfileError: something is asked for that is not there.
    """
    if asked is None:
        return list(there)
    if isinstance(asked, str):
        raise ProfileError(f"Expected a list, such as [{asked!r}], and found the text {asked!r}.")
    wanted = list(asked)
    for item in wanted:
        if item not in there:
            known = ", ".join(map(str, there)) or "none"
            raise ProfileError(f"The profile has no {what} {item!r}.{nearest(str(item), map(str, there))} "
                               f"It has: {known}.")
    return wanted


@cache
def digest_of_rows(rows: tuple[Example, ...]) -> str:
    """What of the rows determines a training: their texts in order, not the file that they stood in."""
    return of_value([[[asdict(message) for message in row.context], row.response] for row in rows])


def _row(result: RunResult) -> dict[str, Any]:
    row = {field.name: getattr(result.run, field.name) for field in fields(Run)}
    for which, found in (("general", result.general), ("in_domain", result.in_domain)):
        row |= {f"{which}_misaligned": found.misaligned.percent, f"{which}_incoherent": found.incoherent.percent,
                f"{which}_asked": found.asked, f"{which}_scored": found.scored}
    return row | {"train_seconds": result.train_seconds, "train_tokens": result.train_tokens, "run_key": result.run_key}
