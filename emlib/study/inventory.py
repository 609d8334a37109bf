"""The artefacts of a profile's runs, by kind."""

from __future__ import annotations

from collections.abc import Mapping

from emlib.core.step import Step
from emlib.steps.adapter import Adapter, KeptAdapter
from emlib.steps.answers import Answers, MetricScores, Verdicts
from emlib.steps.grpo import GrpoAdapter, GrpoRewards
from emlib.study.study import Study

# The kinds that a user may name. A judge's single scores are in a separate file and are not among them.
KINDS: Mapping[str, tuple[type[Step], ...]] = {
    "adapters": (Adapter, KeptAdapter, GrpoAdapter), "answers": (Answers,),
    "verdicts": (Verdicts, MetricScores, GrpoRewards)}


def steps_of(study: Study, kind: str) -> list[Step]:
    """Return the steps of one kind that the profile's runs end in, each once."""
    steps = dict.fromkeys(step for run in study.every_run() for step in study.own_steps(run))
    return [step for step in steps if isinstance(step, KINDS[kind])]
