"""The maker of each kind of step: a function of the step, the session, and the folder to write into."""

from __future__ import annotations

from collections.abc import Mapping

from emlib.make import (
    adapter,
    answers,
    audit,
    components,
    grpo,
    losses,
    measures,
    monitor,
    panel,
    pool,
    reference,
    rows,
    selection,
    trait_adapter,
    vectors,
    verdicts,
)
from emlib.make.session import Maker
from emlib.steps import adapter as adapters
from emlib.steps import answers as answering
from emlib.steps import audit as audits
from emlib.steps import candidates as offers
from emlib.steps import components as changes
from emlib.steps import grpo as reinforcement
from emlib.steps import measures as measuring
from emlib.steps import monitor as monitoring
from emlib.steps import panel as benchmarks
from emlib.steps import pool as pools
from emlib.steps import trait_adapter as traits
from emlib.steps import vectors as steering

MAKERS: Mapping[type, Maker] = {
    steering.PersonaVectors: vectors.extract,
    steering.SteeredAnswers: vectors.steered,
    adapters.ReferenceStates: reference.make,
    adapters.ReferenceProjections: reference.projections,
    adapters.Adapter: adapter.make,
    changes.ChangeComponents: components.make,
    adapters.KeptAdapter: adapter.kept,
    traits.TraitAdapter: trait_adapter.make,
    audits.RowAudit: audit.make,
    pools.Pool: pool.make,
    pools.Refusals: pool.refusals,
    pools.PoolLosses: losses.make,
    pools.Selection: selection.make,
    pools.AddedRows: rows.make,
    offers.CandidateRows: rows.candidate_rows,
    pools.OwnAnswers: selection.own_answers,
    answering.Answers: answers.make,
    answering.Verdicts: verdicts.make,
    answering.SecondVerdicts: verdicts.make,
    answering.MetricScores: verdicts.metric,
    measuring.Projections: measures.projections,
    measuring.Choices: measures.choices,
    measuring.HeldOutLosses: measures.held_out,
    monitoring.MonitorInputs: monitor.inputs,
    monitoring.FinalReading: monitor.final,
    benchmarks.PanelResult: panel.make,
    reinforcement.GrpoAdapter: grpo.make,
    reinforcement.GrpoAnswers: answers.make,
    reinforcement.GrpoRewards: grpo.rewards,
}
