"""The benign tasks of a profile: which methods learn which of them, under which keys, and what came out (section 5.2).

A run is one (model, task, tier, method, setting, seed). It is trained and asked by the same machinery as the narrow
data sets and kept in the same store; what stands in place of a judge is exact match.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from emlib.config import Benign, BenignTask, Method, OpSwapTask, dataset_name, datasets_of, seeds_of, swept_of
from emlib.core.errors import ProfileError, StoreError
from emlib.core.files import read_records, write_text
from emlib.core.records import Answer
from emlib.core.schema import Strict
from emlib.data.benign import TaskData, load_opswap, load_qa
from emlib.data.sources import locate
from emlib.evaluation.exact_match import Mark, Score, mark, score
from emlib.store.artefacts import Artefact
from emlib.study.runs import Asked, Fit, Quiz, in_words
from emlib.study.study import Study, open_study, sliced
from emlib.training.records import StepRecord, read_log

Settings = TypeVar("Settings", bound=Strict)


@dataclass(frozen=True)
class BenignRun:
    """What tells one run from another. `tier` is OpSwap's; other tasks have none."""

    model: str
    task: str
    tier: int | None
    method: str
    setting: float | None
    seed: int

    @property
    def dataset(self) -> str:
        """The task and its tier in one word, as notebooks and slices name it."""
        return dataset_name(self.task, self.tier)

    def __str__(self) -> str:
        return in_words(self.dataset, self.method, self.setting, self.seed)


@dataclass(frozen=True)
class BenignResult:
    """What came out of a run."""

    run: BenignRun
    score: Score


class BenignStudy:
    """The benign runs of one study."""

    def __init__(self, study: Study) -> None:
        self.study, self.profile = study, study.profile

    @cached_property
    def spec(self) -> Benign:
        """What the profile says about benign tasks.

        Raises:
            ProfileError: it says nothing about them.
        """
        if self.profile.benign is None:
            raise ProfileError(f"Profile '{self.study.name}' has no section 'benign': it trains no benign task. "
                               "params/demo.yaml has one to start from.")
        return self.profile.benign

    def runs(self, *, datasets: Iterable[str] | None = None, settings: Iterable[float] | None = None,
             seeds: Iterable[int] | None = None) -> list[BenignRun]:
        """The profile's benign runs, or the slice of them that is asked for; none where it has no benign tasks.

        Args:
            datasets: a task with its tier, such as `opswap-1` or `foqa`.

        Raises:
            ProfileError: something is asked for that the profile does not have.
        """
        if self.profile.benign is None:
            return []
        spec, named = self.spec, datasets_of(self.spec)
        names = sliced("benign task", datasets, list(named))
        swept = sliced("setting", settings, swept_of(self.spec))
        wanted = sliced("seed", seeds, seeds_of(spec.seeds, spec.all_methods))
        return [BenignRun(self.profile.model.name, *named[name], method.name, setting, seed)
                for name in names for method in spec.methods_of(named[name][0])
                for setting in method.sweep or (None,) if setting is None or setting in swept
                for seed in method.seeds or spec.seeds if seed in wanted]

    def task(self, run: BenignRun) -> BenignTask:
        """The task of a run as the profile describes it."""
        return self.spec.tasks[run.task]

    def data(self, run: BenignRun) -> TaskData:
        """Rows to train on and questions to ask."""
        if run.dataset not in self._data:
            task = self.task(run)
            self._data[run.dataset] = (load_opswap(task, run.tier or 0) if isinstance(task, OpSwapTask)
                                       else load_qa(task, locate))
        return self._data[run.dataset]

    @cached_property
    def _data(self) -> dict[str, TaskData]:
        return {}

    def method(self, run: BenignRun) -> Method:
        """The run's method."""
        return next(method for method in self.spec.methods_of(run.task) if method.name == run.method)

    def fit(self, run: BenignRun) -> Fit | None:
        """What the run's adapter is fitted to; None where there is none."""
        if run.method == "untrained":
            return None
        training = over(self.profile.training, self.task(run).training)
        defenses = self.method(run).at(run.setting)
        rows = self.study.defended(self.data(run).train[:training.train_rows], defenses)
        return Fit(run.dataset, rows, defenses, training, run.seed)

    def quiz(self, run: BenignRun) -> Quiz:
        """What the run is asked."""
        sampling = over(self.profile.evaluation.sampling, self.task(run).sampling)
        return Quiz([item.question for item in self.data(run).test], self.spec.samples, sampling, run.seed)

    def adapter(self, run: BenignRun) -> Artefact | None:
        """The run's adapter, if it is there."""
        fit = self.fit(run)
        return None if fit is None else self.study.store.find("adapter", self.study.fit_settings(fit))

    def log(self, run: BenignRun) -> list[StepRecord]:
        """The run's training, step by step; empty where nothing was trained."""
        adapter = self.adapter(run)
        return [] if adapter is None else read_log(adapter.folder)

    def answers(self, run: BenignRun) -> list[Answer] | None:
        """The run's answers, if they are there."""
        found = self.study.store.find("answers", self.study.quiz_settings(self.fit(run), self.quiz(run)))
        return None if found is None else read_records(found.file("answers.jsonl"), Answer)

    def marks(self, run: BenignRun, answers: Sequence[Answer]) -> list[Mark]:
        """How each answer comes out."""
        return mark(answers, self.data(run).test, numbers=isinstance(self.task(run), OpSwapTask))

    def result(self, run: BenignRun) -> BenignResult | None:
        """What came out of a run, or None where it is not finished."""
        answers = self.answers(run)
        if answers is None:
            return None
        cut = sum(answer.finish_reason == "length" for answer in answers)
        return BenignResult(run, score(self.marks(run, answers), cut=cut,
                                       resamples=self.profile.evaluation.bootstrap))

    def complete(self, runs: Sequence[BenignRun]) -> list[BenignResult]:
        """Make whatever these runs lack, and say what came out. What is there is not made again."""
        missing = [run for run in runs if self.answers(run) is None]
        if missing:
            from emlib.make.maker import Maker  # loads torch and the model

            with Maker(self.study) as maker:
                maker.answer_all([Asked(str(run), self.fit(run), self.quiz(run)) for run in missing])
        if runs:
            self.write_results()
        return [result for run in runs if (result := self.result(run)) is not None]

    def results(self) -> list[BenignResult]:
        """All finished benign runs of the profile, in its order.

        Raises:
            StoreError: there are such runs, and none is finished.
        """
        runs = self.runs()
        found = [result for run in runs if (result := self.result(run)) is not None]
        if runs and not found:
            raise StoreError(f"No benign run of profile '{self.study.name}' is finished. Run notebook 10_benign_tasks "
                             f"first, or `make reproduce PROFILE={self.study.name}`.")
        return found

    def write_results(self) -> Path:
        """`benign.csv`: one row a finished run; strict exact match in percent of what was asked."""
        path = self.study.folder / "benign.csv"
        self.study.record()
        frame = pd.DataFrame([_row(r) for r in self.results()], columns=COLUMNS)
        write_text(path, frame.astype({"tier": "Int64"}).to_csv(index=False))  # else one run without a tier makes 0 0.0
        return path


COLUMNS = [*(field.name for field in fields(BenignRun)), "exact_match", "asked"]


def open_benign(profile: str) -> BenignStudy:
    """The benign runs of a profile: the name of a file in `params/`, or the path of a YAML file."""
    return BenignStudy(open_study(profile))


def over(settings: Settings, changes: Settings | None) -> Settings:
    """`settings` with what a task's own section says, and nothing of what that leaves at its default."""
    if changes is None:
        return settings
    return settings.model_copy(update={name: getattr(changes, name) for name in changes.model_fields_set})


def _row(result: BenignResult) -> dict[str, Any]:
    return {field.name: getattr(result.run, field.name) for field in fields(BenignRun)} | {
        "exact_match": result.score.strict.percent, "asked": result.score.asked}
