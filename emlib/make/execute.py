"""Making what a study lacks: each goal is a run's name and its final steps.

Artefacts in the store are reused. All answers are requested together, and a judge behind an API scores them while the
next ones are sampled. Goals that wait for a judge's batch are returned, and everything else is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from emlib.config import OpenAIJudge
from emlib.core.background import BackgroundWorker
from emlib.core.errors import JudgeWaits
from emlib.core.progress import say
from emlib.core.step import Step
from emlib.make.answers import Reader, answered, judge_part
from emlib.make.session import Session
from emlib.steps.answers import Answers, MetricScores, SecondVerdicts, Verdicts
from emlib.steps.specs import Assessment


@dataclass(frozen=True)
class Goal:
    """The final steps of a run, and the run's name in progress lines."""

    name: str
    steps: tuple[Step, ...]


def complete(session: Session, goals: Sequence[Goal]) -> list[JudgeWaits]:
    """Make every missing step of these goals. Return an error for each goal that waits for a judge's batch."""
    missing = [(goal, step) for goal in goals for step in goal.steps if session.store.find(step) is None]
    readers: dict[Answers, list[tuple[Goal, Step]]] = {}  # a set's verdicts and metrics are of the same answers
    for goal, step in missing:
        if (answers := _answers_of(step)) is not None:
            readers.setdefault(answers, []).append((goal, step))
    waits = dict(_sample_and_judge(session, readers))
    for goal, step in missing:
        if _answers_of(step) is None and (wait := _make(session, goal, step)) is not None:
            waits.setdefault(goal.name, wait)
    return list(waits.values())


def _answers_of(step: Step) -> Answers | None:
    """Return the answers that a step is or that it judges; None for other steps, and for a second judge."""
    if isinstance(step, Verdicts | MetricScores) and not isinstance(step, SecondVerdicts):
        return step.answers
    return step if isinstance(step, Answers) else None


def _judge_behind_api(step: Step) -> OpenAIJudge | None:
    """Return the judge behind an API that a step asks; None if it asks none."""
    asked = step.assessment if isinstance(step, Verdicts) else step
    judge = asked.judge if isinstance(asked, Assessment | MetricScores) else None
    return judge if isinstance(judge, OpenAIJudge) else None


def _sample_and_judge(session: Session,
                      readers: Mapping[Answers, Sequence[tuple[Goal, Step]]]) -> Iterator[tuple[str, JudgeWaits]]:
    """Make each set of answers, and the steps that read it. Yield the goals that wait for a judge's batch, by name."""
    outcomes: list[tuple[Goal, Callable[[], JudgeWaits | None]]] = []
    with BackgroundWorker("judge") as background:
        def begin(goal: Goal, step: Step) -> Callable[[], JudgeWaits | None]:
            if _judge_behind_api(step) is not None:
                return background.submit(_make, session, goal, step).result
            wait = _make(session, goal, step)
            return lambda: wait

        judging = {answers: _judging(background, session, [step for _, step in steps])
                   for answers, steps in readers.items()}
        with answered(session, judging) as found:
            for steps, _ in zip(readers.values(), found, strict=True):
                outcomes += [(goal, begin(goal, step)) for goal, step in steps]
    for goal, outcome in outcomes:
        if (wait := outcome()) is not None:
            yield goal.name, wait


def _judging(background: BackgroundWorker, session: Session, steps: Sequence[Step]) -> Reader | None:
    """Return what has each batch of answers judged as soon as it is sampled; None if no step allows that.

    A judge with the batch API is sent a whole set of answers.
    """
    for step in steps:
        judge = _judge_behind_api(step)
        if isinstance(step, Verdicts) and judge is not None and not judge.batch:
            return partial(background.submit, judge_part, step, session)
    return None


def _make(session: Session, goal: Goal, step: Step) -> JudgeWaits | None:
    """Make a step. Return the judge's error if its batch has not come back yet, else None."""
    try:
        session.need(step)
    except JudgeWaits as wait:
        return wait
    if all(session.store.find(other) is not None for other in goal.steps):
        say(f"{goal.name}: done")
    return None
