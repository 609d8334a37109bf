"""What a profile's runs are made of: the artefacts that they end in, by kind."""

from __future__ import annotations

from collections.abc import Mapping

from emlib.core.step import Step
from emlib.steps.adapter import Adapter
from emlib.steps.answers import Answers, Verdicts
from emlib.steps.grpo import GrpoAdapter, GrpoRewards
from emlib.study.study import Study

# What people name, and what it is. Single scores of a judge lie in a file of their own and are never touched.
KINDS: Mapping[str, tuple[type[Step], ...]] = {
    "adapters": (Adapter, GrpoAdapter), "answers": (Answers,), "verdicts": (Verdicts, GrpoRewards)}


def steps_of(study: Study, kind: str) -> list[Step]:
    """The steps of one kind that the profile's runs end in, each once."""
    steps = dict.fromkeys(step for run in study.every_run() for step in study.own_steps(run))
    return [step for step in steps if isinstance(step, KINDS[kind])]
