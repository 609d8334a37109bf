"""A study: the runs of a profile, what each needs, and what came out.

A run is one (model, data set, method, setting, seed). It needs an adapter (but for `untrained`), answers to the general
and to the in-domain questions, and a judge's verdicts on them; each is an artefact of the store under a key made of
everything that determines it. This module knows the keys and reads results; `emlib.make.maker` does the work, and is
loaded only where something has to be made, so that looking at a finished study is instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from emlib.config import (
    BASELINES,
    OWN,
    Defense,
    Domain,
    Inoculation,
    Kl,
    Method,
    Own,
    Profile,
    Trait,
    domains_of,
    load_profile,
    seeds_of,
    trait_of,
)
from emlib.core import paths
from emlib.core.digests import key_of, of_file, of_value
from emlib.core.errors import JudgeWaits, ProfileError, StoreError, nearest
from emlib.core.files import read_records, write_text
from emlib.core.records import Answer, Example, Question, Verdict
from emlib.data.domains import NarrowData, in_domain_questions, load_domain
from emlib.data.own import OwnRows, own_data, read_own
from emlib.data.questions import read_questions
from emlib.data.sources import locate
from emlib.data.traits import completed
from emlib.evaluation.rates import Denominator, rates
from emlib.judging.judges import identity as identity_of_judge
from emlib.judging.judges import reads, rubrics
from emlib.judging.rubrics import OURS, Rubrics
from emlib.models.identity import identity
from emlib.store.artefacts import Artefact, Store
from emlib.study import interleaving, overrides, ownership
from emlib.study.runs import QUESTION_SETS, Fit, QuestionSet, Quiz, Run, RunResult, Steered
from emlib.training.records import StepRecord, read_log

# Raised when a stage computes something else from the same settings, so that old artefacts are not taken for new ones.
VERSIONS = {"vector": 2, "reference": 1, "steered": 1, "adapter": 1, "answers": 1, "verdicts": 1}


class Study:
    """The runs of one profile over one store."""

    def __init__(self, name: str, profile: Profile, store: Store, stated_in: str | None = None) -> None:
        self.name, self.profile, self.store, self.stated_in = name, profile, store, stated_in

    @property
    def folder(self) -> Path:
        """Where this profile's results, tables, figures and executed notebooks go."""
        return paths.runs() / self.name

    @property
    def account(self) -> str:
        """Whose budget a paid judge works on: a profile's, with whatever overrides."""
        return overrides.base_of(self.name)

    def record(self) -> None:
        """Keep the profile, whole, beside the results that are made with it, which are its own from now on."""
        if self.stated_in is not None:
            ownership.claim(self.stated_in)
        overrides.keep(self.profile, self.folder, f"The profile '{self.name}' as it was when the results beside it "
                                                  "were written.")

    @cached_property
    def trait(self) -> Trait:
        """The trait whose spread is studied."""
        return completed(trait_of(self.profile), locate)

    @cached_property
    def model_identity(self) -> dict[str, Any]:
        """What stands for the model's weights in keys."""
        return identity(self.profile.model)

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """The narrow data sets of `params/datasets.yaml`, and the profile's own."""
        return domains_of(self.profile)

    def data(self, dataset: str) -> NarrowData:
        """The aligned and the misaligned rows of one data set, split."""
        if dataset not in self._data:
            self._data[dataset] = (own_data(self.own, self.own_rows) if dataset == OWN else
                                   load_domain(dataset, self.domains[dataset], locate))
        return self._data[dataset]

    @property
    def own(self) -> Own:
        """What the profile says of the reader's own data set.

        Raises:
            ProfileError: nothing.
        """
        if self.profile.own is None:
            raise ProfileError(f"Profile '{self.name}' has no section 'own'. Copy params/own.yaml, and name your file "
                               "in it.")
        return self.profile.own

    @cached_property
    def own_rows(self) -> OwnRows:
        """The rows drawn from the reader's own data set, and what was found while reading it."""
        return read_own(self.own)

    @cached_property
    def _data(self) -> dict[str, NarrowData]:
        return {}

    @cached_property
    def general_questions(self) -> list[Question]:
        """The questions that tell whether the trait has spread."""
        return read_questions(locate(self.profile.evaluation.general))

    @cached_property
    def rubrics(self) -> Rubrics:
        """What the profile's judge goes by, if it is a language model."""
        return rubrics(self.profile.judge, self.trait, locate(self.profile.evaluation.general))

    def questions(self, run: Run, which: QuestionSet) -> list[Question]:
        """The general questions, or the held-out prompts of the run's own data set."""
        if which == "general":
            return self.general_questions
        return in_domain_questions(self.data(run.dataset), self.profile.evaluation.in_domain_questions)

    @cached_property
    def pool_file(self) -> str:
        """The digest of the file that the pool is read from."""
        return of_file(locate(interleaving.pool_of(self).source))

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
            "methods": sliced("method", methods, [method.name for method in profile.methods]),
            "datasets": sliced("data set", datasets, profile.datasets),
            "seeds": sliced("seed", seeds, seeds_of(profile.seeds, profile.methods))}
        swept = sliced("setting", settings, sorted({number for method in profile.methods for number in method.sweep}))
        return [Run(profile.model.name, dataset, name, setting, seed)
                for dataset in wanted["datasets"] for name in wanted["methods"]
                for setting in self.method(name).sweep or (None,) if setting is None or setting in swept
                for seed in self.method(name).seeds or profile.seeds if seed in wanted["seeds"]]

    def method(self, name: str) -> Method:
        """The profile's method of that name; a baseline may be needed that the profile does not list."""
        listed = next((method for method in self.profile.methods if method.name == name), None)
        return Method(name=name) if listed is None else listed

    def defended_by(self, kind: str) -> list[str]:
        """The methods with a defense of that kind."""
        return [method.name for method in self.profile.methods if kind in {d.kind for d in method.defenses}]

    def baseline(self, dataset: str, method: str, seed: int) -> Run:
        """A run without defenses, on any domain of `params/datasets.yaml`, also outside the profile."""
        return Run(self.profile.model.name, dataset, method, None, seed)

    def defenses(self, run: Run) -> tuple[Defense, ...]:
        """What protects the run's training, with the swept number set."""
        return self.method(run.method).at(run.setting)

    def train_rows(self, run: Run) -> tuple[Example, ...]:
        """The examples a run trains on, but for those of the pool that it interleaves."""
        data = self.data(run.dataset)
        rows = (data.aligned if run.method == "aligned" else data.misaligned).train
        return self.defended(rows[:self.profile.training.train_rows], self.defenses(run))

    def defended(self, rows: tuple[Example, ...], defenses: Iterable[Defense]) -> tuple[Example, ...]:
        """The rows as those defenses that change the data leave them."""
        prompt = self.inoculation(defenses)
        return rows if prompt is None else tuple(row.under(prompt) for row in rows)

    def inoculation(self, defenses: Iterable[Defense]) -> str | None:
        """The system prompt that stands before the rows in training, where one of the defenses is an inoculation."""
        found = next((defense for defense in defenses if isinstance(defense, Inoculation)), None)
        return None if found is None else found.prompt or self.trait.inoculation_prompt

    def fit(self, run: Run) -> Fit | None:
        """What the run's adapter is fitted to; None where there is none."""
        if run.method == "untrained":
            return None
        return Fit(run.dataset, self.train_rows(run), self.defenses(run), self.profile.training, run.seed)

    def adapter_settings(self, run: Run) -> dict[str, Any] | None:
        """Everything that determines the run's adapter; None where there is none."""
        fit = self.fit(run)
        return None if fit is None else self.fit_settings(fit)

    def fit_settings(self, fit: Fit) -> dict[str, Any]:
        """Everything that determines an adapter."""
        return {
            "version": VERSIONS["adapter"], "model": self.model_identity,
            "lora": self.profile.lora.model_dump(mode="json"),
            "training": fit.training.key,
            "rows": digest_of_rows(fit.rows),
            "defenses": [defense.model_dump(mode="json") for defense in fit.defenses],
            "vector": key_of("vector", self.vector_settings()) if fit.steered else None, "seed": fit.seed,
            **self.profile.backend.key("training"), **interleaving.added_settings(self, fit)}

    def reference_settings(self, fit: Fit, kl: Kl) -> dict[str, Any]:
        """Everything that determines the reference model's states on an adapter's rows."""
        return {"version": VERSIONS["reference"], "model": self.model_identity, "tokens": kl.tokens,
                "rows": digest_of_rows(fit.rows), "max_length": fit.training.max_seq_length,
                **interleaving.added_settings(self, fit)}

    def vector_settings(self) -> dict[str, Any]:
        """Everything that determines the trait's persona vectors."""
        prompts = self.trait.model_dump(mode="json", include={"system_prompts", "questions", "markers", "rubric"})
        return {
            "version": VERSIONS["vector"], "model": self.model_identity, "trait": prompts,
            "judge": identity_of_judge(self.profile.judge),
            **({"coherence": OURS.coherence} if reads(self.profile.judge) else {}),
            **self.profile.backend.key("generation"),
            "extraction": self.profile.extraction.model_dump(mode="json", exclude={"min_pairs"})}

    def steered_settings(self, layer: int, strength: float) -> dict[str, Any]:
        """Everything that determines the answers under a persona vector; without strength no layer differs."""
        return {"version": VERSIONS["steered"], "model": self.model_identity,
                "vector": key_of("vector", self.vector_settings()) if strength else None,
                "layer": layer if strength else None, "strength": strength,
                "questions": of_value([asdict(question) for question in self.probe_questions()]),
                "sampling": self.profile.probe.sampling.model_dump(mode="json"),
                "judge": identity_of_judge(self.profile.judge), "trait": self.trait.model_dump(mode="json")}

    def probe_questions(self) -> list[Question]:
        """The questions that are asked under a persona vector."""
        return self.general_questions[:self.profile.probe.questions]

    def vectors(self) -> Artefact | None:
        """The trait's persona vectors, if they were taken."""
        return self.store.find("vector", self.vector_settings())

    def answers_settings(self, run: Run, which: QuestionSet) -> dict[str, Any]:
        """Everything that determines the run's answers to one set of questions."""
        return self.quiz_settings(self.fit(run), self.quiz(run, which))

    def quiz(self, run: Run, which: QuestionSet) -> Quiz:
        """What the run is asked."""
        return Quiz(self.questions(run, which), self.samples(which), self.profile.evaluation.sampling, run.seed)

    def quiz_settings(self, fit: Fit | None, quiz: Quiz) -> dict[str, Any]:
        """Everything that determines a fitted model's answers, or the base model's."""
        return {
            "version": VERSIONS["answers"], "model": self.model_identity,
            "adapter": None if fit is None else key_of("adapter", self.fit_settings(fit)),
            "questions": of_value([asdict(question) for question in quiz.questions]),
            "samples": quiz.samples, "sampling": quiz.sampling.model_dump(mode="json"), "seed": quiz.seed,
            **self.profile.backend.key("generation")}

    def verdicts_settings(self, run: Run, which: QuestionSet) -> dict[str, Any]:
        """Everything that determines the verdicts on those answers."""
        return {
            "version": VERSIONS["verdicts"], "answers": key_of("answers", self.answers_settings(run, which)),
            "judge": identity_of_judge(self.profile.judge),
            **({"rubrics": self.rubrics.key(self.questions(run, which))} if reads(self.profile.judge) else
               {"trait": self.trait.model_dump(mode="json")})}

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
        return None if found is None else read_records(found.file("answers.jsonl"), Answer)

    def verdicts(self, run: Run, which: QuestionSet) -> list[Verdict] | None:
        """The verdicts on the run's answers, if they are there."""
        found = self.store.find("verdicts", self.verdicts_settings(run, which))
        return None if found is None else read_records(found.file("verdicts.jsonl"), Verdict)

    def result(self, run: Run, of: Denominator = "asked") -> RunResult | None:
        """What came out of a run, in shares of the answers asked for or scored; None where it is not finished."""
        general, in_domain = self.verdicts(run, "general"), self.verdicts(run, "in_domain")
        if general is None or in_domain is None:
            return None
        adapter = self.adapter(run)
        evaluation = self.profile.evaluation
        score = partial(rates, of=of, resamples=evaluation.bootstrap)
        seconds, tokens = (adapter.facts["seconds"], adapter.facts["tokens"]) if adapter else (0.0, 0)
        return RunResult(run, score(general), score(in_domain), seconds, tokens, self.run_key(run))

    def complete(self, runs: Sequence[Run]) -> list[RunResult]:
        """Make whatever these runs lack, and say what came out. What is there is not made again."""
        missing = [run for run in runs if self.result(run) is None]
        if missing:
            from emlib.make.maker import Maker  # loads torch and the model

            with Maker(self) as maker:
                waiting = maker.make_all(missing)
            if waiting:
                raise JudgeWaits(f"{len(waiting)} of {len(runs)} runs wait for their judge. {waiting[0]}")
        self.write_results()
        return [result for run in runs if (result := self.result(run)) is not None]

    def probe(self) -> list[Steered]:
        """Answers under the persona vector at inference, layer by layer, made where they are missing."""
        tried = [(layer, strength) for layer in self.profile.probe.layers for strength in self.profile.probe.strengths]
        settings = {pair: self.steered_settings(*pair) for pair in tried}
        missing = [pair for pair in tried if self.store.find("steered", settings[pair]) is None]
        if missing or self.vectors() is None:
            from emlib.make.maker import Maker  # loads torch and the model

            with Maker(self) as maker:
                maker.vector()
                for pair in missing:
                    maker.steered(*pair)
        found = {pair: _there(self.store.find("steered", settings[pair])) for pair in tried}
        return [Steered(*pair, read_records(steered.file("answers.jsonl"), Answer),
                        read_records(steered.file("verdicts.jsonl"), Verdict)) for pair, steered in found.items()]

    def select(self, runs: Sequence[Run]) -> None:
        """Put the pool's rows in the order in which these runs take them: score them first, where that is wanted."""
        fits = [fit for run in runs if (fit := self.fit(run)) is not None]
        missing = [fit for fit in fits if interleaving.is_missing(self, fit)]
        if missing:
            from emlib.make.maker import Maker  # as in `complete`

            with Maker(self) as maker:
                for fit in missing:
                    maker.preparer.selection(fit)

    def baselines(self) -> list[str]:
        """Those of the three conditions without a defense that the profile runs (Table 2)."""
        return [method.name for method in self.profile.methods if method.name in BASELINES]

    def results(self, of: Denominator = "asked") -> list[RunResult]:
        """All finished runs of the profile, in its order; shares are of the answers asked for, or of those scored.

        Raises:
            StoreError: there is none yet.
        """
        found = [result for run in self.runs() if (result := self.result(run, of)) is not None]
        if not found:
            raise StoreError(f"No run of profile '{self.name}' is finished. Run notebook 04_baselines first, or "
                             f"`make reproduce PROFILE={self.name}`.")
        return found

    def write_results(self) -> Path:
        """`results.csv`: one row a finished run, percentages of what was asked."""
        path = self.folder / "results.csv"
        self.record()
        write_text(path, pd.DataFrame([_row(r) for r in self.results()], columns=RESULT_COLUMNS).to_csv(index=False))
        return path


RESULT_COLUMNS = [
    "model", "dataset", "method", "setting", "seed", "general_misaligned", "general_incoherent", "general_asked",
    "general_scored", "in_domain_misaligned", "in_domain_incoherent", "in_domain_asked", "in_domain_scored",
    "train_seconds", "train_tokens", "run_key"]


def open_study(profile: str) -> Study:
    """The study of a profile: the name of a file in `params/`, or the path of a YAML file.

    Raises:
        ProfileError: the profile is not sound, or its results would be filed among those of another profile.
    """
    loaded = load_profile(profile)
    ownership.refuse_others(profile)
    return Study(paths.study_name(profile), loaded, Store(paths.runs() / "store"), profile)


def _there(artefact: Artefact | None) -> Artefact:
    assert artefact is not None, "it was just made"
    return artefact


def sliced(what: str, asked: Iterable[Any] | None, there: Sequence[Any]) -> list[Any]:
    """What is asked for of what is there, or all of it (None).

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
