"""Training, asking and judging by hand in a few lines of a notebook: the functions that `import emlib` offers.

Adapters are stored under the same keys as those of the profile's runs, so that training one again takes no time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from emlib.config import Method
from emlib.config.words import repeats
from emlib.core.defense import Defense, refuse_exclusions
from emlib.core.errors import DataError, ProfileError, nearest
from emlib.core.records import Answer, Question, Verdict, as_judged
from emlib.core.temporary import temporary_folder
from emlib.data.lazy import Questions
from emlib.judging.judge_batch import JudgeBatch
from emlib.judging.judges import judge as judged_by
from emlib.steps.adapter import Adapter
from emlib.steps.specs import EvaluationSpec
from emlib.study.runs import Run, RunResult
from emlib.study.study import Study

if TYPE_CHECKING:
    from emlib.make.session import Session


TRIED = "tried"  # the method's name of a run that a notebook tries


@dataclass(frozen=True)
class Trained:
    """A model of a study: under the adapter of `step`, or untrained (None)."""

    study: Study
    step: Adapter | None

    @property
    def folder(self) -> Path:
        """The folder of the adapter, as PEFT loads it."""
        assert self.step is not None, "the untrained model has no adapter"
        return _session(self.study).folder_of(self.step)

    def __str__(self) -> str:
        return "the untrained model" if self.step is None else self.step.title


@dataclass(frozen=True)
class Asked:
    """A model's answers: one for each question and sample, in the order of the questions."""

    model: Trained
    questions: tuple[Question, ...]
    answers: tuple[Answer, ...]


def untrained(study: Study) -> Trained:
    """Return the study's model before any fine-tuning."""
    return Trained(study, None)


def train(study: Study, *defenses: Defense, dataset: str | None = None, seed: int = 0) -> Trained:
    """Fine-tune the study's model on misaligned rows under the given defenses, or without any.

    Args:
        study: the study whose model, data sets and hyperparameters are used.
        defenses: such as `emlib.defenses.kl.Kl(weight=1.0)`, or an instance of your own class.
        dataset: the narrow data set; None for the profile's first one.
        seed: of the adapter and of the order of the rows.

    Raises:
        ProfileError: there is no such data set, or a defense does not fit this profile or another defense.
    """
    name = _dataset(study, dataset)
    kinds = _checked(study, defenses)
    spec = study.recipes.narrow(name, "misaligned", defenses, seed)
    step = study.recipes.adapter(spec, f"{name} · {kinds} · seed {seed}")
    _session(study).need(step)
    return Trained(study, step)


def tried(study: Study, *defenses: Defense, dataset: str | None = None, seed: int = 0) -> RunResult:
    """Train and evaluate a run under defenses that the profile need not name, and return its result.

    It is a run of the method `tried`, with the profile's questions, judge and store. The arguments and errors are those
    of `train`.
    """
    _checked(study, defenses)
    method = Method(name=TRIED, defenses=defenses)
    profile = study.profile.model_copy(update={"methods": (method, *study.profile.methods)})  # before one of its name
    beside = Study(study.name, profile, study.store, auto_dtype=study.auto_dtype)
    run = Run(profile.model.name, _dataset(study, dataset), TRIED, method.number, seed)
    beside.need(beside.task(run).scored(run))
    result = beside.result(run)
    assert result is not None, "its steps were made"
    return result


def at_settings(study: Study, kind: str, settings: float | Iterable[float] | None,
                runs: Sequence[Run]) -> list[RunResult]:
    """Train and evaluate one or several further values of a defense's swept option, and return the results.

    The method is the first one whose hyperparameter is that option; the data set and the seed are those of the first of
    `runs` with it. Without settings nothing is done.

    Raises:
        ProfileError: no method of the profile varies the defense, or none of the runs is one of such a method.
    """
    values = [settings] if isinstance(settings, int | float) else list(settings or ())
    if not values:
        return []
    methods = [method.name for method in study.profile.methods if method.swept_kind == kind]
    if not methods:
        raise ProfileError(f"No method of this profile varies '{kind}': none has it as its first defense with a "
                           f"number. Add one, such as {{name: {kind}, defenses: [{{kind: {kind}}}]}}.")
    like = next((run for run in runs if run.method in methods), None)
    if like is None:
        raise ProfileError(f"None of the notebook's runs is one of {' or '.join(methods)}, whose data set and seed a "
                           f"further '{kind}' would take. Let its parameters datasets, settings and seeds leave one.")
    return study.complete([replace(like, setting=value) for value in values])


def _dataset(study: Study, dataset: str | None) -> str:
    """Return the data set, or the profile's first one; raises ProfileError where there is no such data set."""
    name = dataset or study.profile.datasets[0]
    if name not in (known := (*study.profile.datasets, *study.inputs.domains)):
        raise ProfileError(f"The study '{study.name}' has no data set '{name}'.{nearest(name, known)} "
                           f"It has: {', '.join(known)}.")
    return name


def _checked(study: Study, defenses: Sequence[Defense]) -> str:
    """Return the kinds of the defenses, for titles; raises ProfileError where they do not fit."""
    kinds = ", ".join(defense.kind for defense in defenses) or "no defense"
    try:
        refuse_exclusions(defenses)
        for defense in defenses:
            defense.fits(study.profile, defense.kind)
    except ValueError as error:
        raise ProfileError(f"{kinds}: {error}") from error
    return kinds


def ask(model: Trained, questions: str | Sequence[str | Question], *, samples: int = 1, seed: int = 0) -> Asked:
    """Sample a model's answers to one or several questions, with the sampling of the profile's evaluation.

    Raises:
        DataError: two questions have the same id.
    """
    asked = _with_ids([questions] if isinstance(questions, str) else list(questions))
    from emlib.make.answers import sampled  # loads torch

    sampling = model.study.profile.evaluation.sampling
    spec = EvaluationSpec(Questions.listed("asked by hand", asked), samples, sampling, seed)
    with temporary_folder() as scratch:
        answers, _ = sampled(_session(model.study), spec, model.step, scratch)
    return Asked(model, asked, tuple(answers))


def _with_ids(questions: Sequence[str | Question]) -> tuple[Question, ...]:
    """Return questions of different ids. A text has its place as its id; "_" is before it where a question has that."""
    stated = [one.id for one in questions if isinstance(one, Question)]
    if twice := repeats(stated):
        raise DataError(f"Two questions have the id '{twice[0]}', so that their answers could not be distinguished. "
                        "Give one of them another id.")
    found = []
    for number, one in enumerate(questions, start=1):
        id = f"question_{number}"
        while id in stated:
            id = f"_{id}"
        found.append(Question(id, one) if isinstance(one, str) else one)
    return tuple(found)


def judge(asked: Asked) -> list[Verdict]:
    """Have the profile's judge give a verdict on each answer. `emlib.rates` turns verdicts into shares.

    Raises:
        JudgeError: the judge failed. The scores that it gave before are kept.
    """
    study = asked.model.study
    assessment = study.recipes.assessment
    batch = JudgeBatch(asked.questions, asked.answers, assessment.rubrics.value)
    return as_judged(judged_by(assessment.judge, study.trait, batch, study.budget), asked.questions,
                     coherence_judged=assessment.judge.judges_coherence)


def _session(study: Study) -> Session:
    """Return the study's session, which stays open until another one begins, so that one model is loaded at a time."""
    from emlib.make.session import Session  # loads torch

    kept = Session.kept
    if kept is None or kept.recipes is not study.recipes:
        kept = study.session()
        Session.kept = kept
    return kept
