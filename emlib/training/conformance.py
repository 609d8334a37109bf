"""Tests for anyone's defense, on a tiny random model in seconds: `check(MyDefense, weight=0.1)`.

A penalty's gradient is that of its value; at its null setting a defense does nothing; packed rows, padded rows and
accumulated ones give the same step; a training that was killed and went on ends where one ends that was not; and
nothing is left in the model, also after an exception.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emlib.core.defense import FINE_TUNING, Defense
from emlib.core.errors import EmlibError
from emlib.core.registry import kinds
from emlib.models.batches import collate, pack
from emlib.models.kernels import fitted
from emlib.training.bench import Bench, step

CLOSE = 1e-3  # of a gradient's norm: sums in another order differ by their rounding
SECANT = 0.03  # of a gradient's norm: what a finite difference in float32 may be off
CPU = torch.device("cpu")


class NotKept(EmlibError):
    """A defense breaks a promise; the message says which, and by how much."""


@dataclass(frozen=True)
class Report:
    """What was tested, a line each."""

    defense: Defense
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([f"{self.defense.kind}: keeps its promises", *(f"  {line}" for line in self.lines)])


def check(cls: type[Defense], **options: Any) -> Report:
    """Test a class with some options, which must fit a model of 4 layers.

    Raises:
        NotKept: it breaks a promise.
    """
    defense = cls(**options)
    acts = [hook for hook in FINE_TUNING if defense.has(hook)]
    _require(bool(acts), f"it overrides none of the hooks by which a defense acts: {', '.join(FINE_TUNING)}")
    _require(kinds().get(defense.kind) is cls, f"profiles do not reach it by its kind '{defense.kind}'")
    _require(cls.model_validate_json(defense.model_dump_json()) == defense, "its options do not survive JSON")
    report = Report(defense, [f"acts by {', '.join(acts)}"])
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        bench = Bench(defense, Path(folder))
        for test in (_nothing_is_left, _gradient, _batching, _null, _resuming):
            report.lines.append(test(bench))
    return report


def _require(kept: bool, what: str) -> None:
    if not kept:
        raise NotKept(what)


def _nothing_is_left(bench: Bench) -> str:
    """Blocks and logits are as before, after a step and after an exception."""
    ids = torch.arange(9)[None]
    with bench.model() as model, torch.no_grad():
        before, logits = [type(part) for part in model.modules()], model(input_ids=ids).logits
        with torch.enable_grad():
            step(model, [collate(bench.rows[0], CPU)], bench.objective(bench.defense))
        if bench.defense.has("active"):
            try:
                with bench.defense.active(model, bench.artefacts):
                    raise InterruptedError
            except InterruptedError:
                pass
        same = [type(part) for part in model.modules()] == before
        _require(same and torch.equal(model(input_ids=ids).logits, logits),
                 "it leaves something in the model after a step or an exception: use a context manager that undoes it")
    return "nothing is left in the model after a step and after an exception"


def _gradient(bench: Bench) -> str:
    """The gradient of its term of the loss, against a finite difference along that gradient."""
    defense = bench.defense
    if not (defense.has("penalty") or defense.has("head_kl")):
        return "no term of the loss"
    batch, objective = collate(bench.all_rows, CPU), bench.objective(defense, cross_entropy=0.0)
    with bench.model() as model:
        weights = [p for p in model.parameters() if p.requires_grad]
        gradient = step(model, [batch], objective)[1]
        norm = float(gradient.norm())
        direction = gradient / norm if norm else torch.randn_like(gradient) / gradient.numel() ** 0.5
        ends = []
        for side in (1, -1):
            _move(weights, side * 1e-2 * direction)
            ends.append(defense.factor * step(model, [batch], objective)[0][defense.kind])
            _move(weights, -side * 1e-2 * direction)
    slope = (ends[0] - ends[1]) / 2e-2
    _require(abs(slope - norm) <= SECANT * max(abs(slope), norm),
             f"the gradient of its penalty is {norm:.4g} along itself, and a finite difference says {slope:.4g}: some "
             "part of it is detached from the graph, or is no function of the two passes")
    return f"the gradient of its penalty ({norm:.3g}) is that of its value"


def _move(weights: list[torch.nn.Parameter], by: Tensor) -> None:
    for one, change in zip(weights, by.split([one.numel() for one in weights]), strict=True):
        one.data += change.view_as(one)


def _batching(bench: Bench) -> str:
    """One padded pass, one packed pass and a pass a row are the same step."""
    rows, objective = bench.rows[0], bench.objective(bench.defense)
    with bench.model() as model:
        metrics, whole = step(model, [collate(rows, CPU)], objective)
        with fitted(model):
            packed = step(model, [pack(rows, CPU)], objective)
        for how, (others, gradient) in (("packed", packed), ("accumulated", step(
                model, [collate([row], CPU) for row in rows], objective))):
            apart = float((gradient - whole).norm() / whole.norm())
            told = max(abs(others[name] - value) / max(abs(value), 1e-6) for name, value in metrics.items())
            _require(apart < CLOSE and told < CLOSE,
                     f"{how} rows give another step than padded ones: gradients are {apart:.2g} of their norm apart, "
                     f"metrics {told:.2g}. Is the penalty a sum over '{bench.defense.per}', without padding?")
    return "packed, padded and accumulated rows give the same step"


def _null(bench: Bench) -> str:
    """At its null setting it adds nothing to a step, and training is plain fine-tuning to the last bit."""
    defense = bench.defense
    if not defense.null:
        return "no null setting"
    nothing = defense.model_copy(update=dict(defense.null))
    _require(nothing.is_null and not defense.is_null, f"{dict(defense.null)} is no setting of its options, or its only")
    with bench.model() as model:
        batch, kept = collate(bench.rows[0], CPU), bench.objective()
        plain = step(model, [batch], kept)[1]
        kept.defenses = [nothing]  # as if training did not leave it out
        apart = float((step(model, [batch], kept)[1] - plain).norm() / plain.norm())
    _require(apart < CLOSE, f"at {dict(defense.null)} it changes the gradient by {apart:.2g} of its norm")
    same = torch.equal(bench.train("plain"), bench.train("nothing", nothing))
    _require(same, f"at {dict(defense.null)} training is not plain fine-tuning")
    return f"at {dict(defense.null)} it is plain fine-tuning"


def _resuming(bench: Bench) -> str:
    """A training that is killed after its first checkpoint and goes on ends in the same weights."""
    whole, killed = bench.train("whole", bench.defense), bench.train("killed", bench.defense, kill_after=1)
    _require(torch.equal(whole, killed), "a training that was killed and went on ends in other weights: what the "
             "defense keeps between steps belongs into state() and restore()")
    return "a training that was killed goes on to the same weights"
