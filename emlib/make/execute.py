"""Making what a study lacks: each goal is a run's name and its final steps.

Artefacts in the store are reused. All answers are requested together, and a judge behind an API scores them while the
next ones are sampled. Goals that wait for a judge's batch are returned, and everything else is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from emlib.config import JudgeSpec, OpenAIJudge
from emlib.core.background import BackgroundWorker
from emlib.core.errors import JudgeWaits
from emlib.core.progress import say
from emlib.core.step import Step
from emlib.make.answers import GenerationRequest, answered
from emlib.make.session import Session
from emlib.make.verdicts import judge_part
from emlib.steps.answers import Answers, MetricScores, SecondVerdicts, Verdicts


@dataclass(frozen=True)
class Goal:
    """The final steps of a run, and the run's name in progress lines."""

    name: str
    steps: tuple[Step, ...]


def complete(session: Session, goals: Sequence[Goal]) -> list[JudgeWaits]:
    """Make every missing step of these goals. Return an error for each goal that waits for a judge's batch."""
    missing = [(goal, step) for goal in goals for step in goal.steps if session.store.find(step) is None]
    sampled = [(goal, step) for goal, step in missing if _answers_of(step) is not None]
    waits = dict(_sample_and_judge(session, sampled))
    for goal, step in missing:
        if _answers_of(step) is None and (wait := _make(session, goal, step)) is not None:
            waits.setdefault(goal.name, wait)
    return list(waits.values())


def _answers_of(step: Step) -> Answers | None:
    """Return the answers that a step is or that it judges; None for other steps, and for a second judge."""
    if isinstance(step, Verdicts | MetricScores) and not isinstance(step, SecondVerdicts):
        return step.answers
    return step if isinstance(step, Answers) else None


def _judge_of(step: Step) -> JudgeSpec | None:
    """Return the judge that a step asks; None if it asks none."""
    if isinstance(step, Verdicts):
        return step.assessment.judge
    return step.judge if isinstance(step, MetricScores) else None


def _sample_and_judge(session: Session, sampled: Sequence[tuple[Goal, Step]]) -> Iterator[tuple[str, JudgeWaits]]:
    """Make answers and their verdicts. Yield the goals that wait for a judge's batch, by name."""
    behind_api = {step: judge for _, step in sampled if isinstance(judge := _judge_of(step), OpenAIJudge)}
    with BackgroundWorker("judge") if behind_api else nullcontext() as background:
        requests: dict[Answers, GenerationRequest] = {}  # a set's verdicts and metrics are of the same answers
        for _, step in sampled:
            answers = _answers_of(step)
            assert answers is not None, "only steps with answers are sampled"
            read = requests[answers].read if answers in requests else None
            # The batch API is sent a whole set of answers.
            if background is not None and step in behind_api and not behind_api[step].batch and isinstance(
                    step, Verdicts):
                read = partial(background.submit, judge_part, step, session)
            requests[answers] = GenerationRequest(answers, read)
        judging = []
        with answered(session, list(requests.values())) as found:
            for answers, _ in zip(requests, found, strict=True):
                judging += [(goal, background.submit(_make, session, goal, step) if background is not None
                             and step in behind_api else _make(session, goal, step))
                            for goal, step in sampled if _answers_of(step) == answers]
    for goal, wait in judging:
        outcome = wait if wait is None or isinstance(wait, JudgeWaits) else wait.result()
        if outcome is not None:
            yield goal.name, outcome


def _make(session: Session, goal: Goal, step: Step) -> JudgeWaits | None:
    """Make a step. Return the judge's error if its batch has not come back yet, else None."""
    try:
        session.need(step)
    except JudgeWaits as wait:
        return wait
    if all(session.store.find(other) is not None for other in goal.steps):
        say(f"{goal.name}: done")
    return None
