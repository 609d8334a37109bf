"""Making what a study lacks: each goal is a name for people, and the steps that it ends in.

What is there is taken. All answers are asked for together, and a judge elsewhere reads them while the next ones are
sampled. What waits for a judge's batch is told, and everything else goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from emlib.config import OpenAIJudge
from emlib.core.background import BackgroundWorker
from emlib.core.errors import JudgeWaits
from emlib.core.progress import say
from emlib.core.step import Step
from emlib.make.answers import GenerationRequest, answered
from emlib.make.session import Session
from emlib.make.verdicts import read_part
from emlib.steps.answers import Answers, SecondVerdicts, Verdicts


@dataclass(frozen=True)
class Goal:
    """What a run ends in."""

    name: str
    steps: tuple[Step, ...]


def complete(session: Session, goals: Sequence[Goal]) -> list[JudgeWaits]:
    """Make every step of these goals that is missing; what is returned says which of them wait for a judge's batch."""
    missing = [(goal, step) for goal in goals for step in goal.steps if session.store.find(step) is None]
    asked = [(goal, step) for goal, step in missing if _answers_of(step) is not None]
    waits = dict(_asked(session, asked))
    for goal, step in missing:
        if _answers_of(step) is None and (wait := _made(session, goal, step)) is not None:
            waits.setdefault(goal.name, wait)
    return list(waits.values())


def _answers_of(step: Step) -> Answers | None:
    """The answers that a step is, or that it judges, if they are sampled for it."""
    if isinstance(step, Verdicts) and not isinstance(step, SecondVerdicts):
        return step.answers
    return step if isinstance(step, Answers) else None


def _asked(session: Session, asked: Sequence[tuple[Goal, Step]]) -> Iterator[tuple[str, JudgeWaits]]:
    """Answers and their verdicts; what waits, by the goal's name."""
    judge = session.profile.judge
    elsewhere = isinstance(judge, OpenAIJudge)
    with BackgroundWorker("judge") if elsewhere else nullcontext() as background:
        requests = []
        for _, step in asked:
            read = None
            # A judge by batch is sent a whole set.
            if background is not None and isinstance(judge, OpenAIJudge) and not judge.batch and isinstance(
                    step, Verdicts):
                read = partial(background.submit, read_part, step, session)
            answers = _answers_of(step)
            assert answers is not None, "only such steps are asked for"
            requests.append(GenerationRequest(answers, read))
        with answered(session, requests) as found:
            judging = [(goal, _made(session, goal, step) if background is None else background.submit(
                _made, session, goal, step)) for (goal, step), _ in zip(asked, found, strict=True)]
    for goal, wait in judging:
        outcome = wait if wait is None or isinstance(wait, JudgeWaits) else wait.result()
        if outcome is not None:
            yield goal.name, outcome


def _made(session: Session, goal: Goal, step: Step) -> JudgeWaits | None:
    """Have a step made, whose answers are there; what is returned says that its judge's batch is not back yet."""
    try:
        session.need(step)
    except JudgeWaits as wait:
        return wait
    if all(session.store.find(each) is not None for each in goal.steps):
        say(f"{goal.name}: done")
    return None
