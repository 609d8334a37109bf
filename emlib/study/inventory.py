"""What a profile's runs are made of: the artefacts that they end in, kind by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from emlib.study.benign import BenignStudy
from emlib.study.rl import RlStudy
from emlib.study.runs import QUESTION_SETS
from emlib.study.study import Study

Named = tuple[str, Mapping[str, Any] | None]  # a stage and settings; None where a run has no such artefact


def adapters(study: Study) -> Iterator[Named]:
    """Of all runs: on the narrow data sets, on the benign tasks, by reinforcement learning."""
    yield from (("adapter", study.adapter_settings(run)) for run in study.runs())
    benign = BenignStudy(study)
    fits = [benign.fit(run) for run in benign.runs()]
    yield from (("adapter", study.fit_settings(fit)) for fit in fits if fit is not None)
    if study.profile.grpo is not None:
        rl = RlStudy(study)
        yield from (("rl_adapter", rl.adapter_settings(run)) for run in rl.runs())


def answers(study: Study) -> Iterator[Named]:
    """The same for answers."""
    yield from (("answers", study.answers_settings(run, which)) for run in study.runs() for which in QUESTION_SETS)
    benign = BenignStudy(study)
    yield from (("answers", study.quiz_settings(benign.fit(run), benign.quiz(run))) for run in benign.runs())
    if study.profile.grpo is not None:
        rl = RlStudy(study)
        yield from (("rl_answers", rl.answers_settings(run)) for run in rl.runs())


def verdicts(study: Study) -> Iterator[Named]:
    """What judges gave: verdicts, and rewards. Single scores lie in a file of their own and are never touched."""
    yield from (("verdicts", study.verdicts_settings(run, which)) for run in study.runs() for which in QUESTION_SETS)
    if study.profile.grpo is not None:
        rl = RlStudy(study)
        yield from (("rl_rewards", rl.rewards_settings(run)) for run in rl.runs())


KINDS: Mapping[str, Callable[[Study], Iterator[Named]]] = {"adapters": adapters, "answers": answers,
                                                          "verdicts": verdicts}
