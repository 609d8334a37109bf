"""Tests for any defense, on a tiny random model in seconds: `check(MyDefense, weight=0.1)`.

A penalty's gradient matches its value; at its null setting a defense does nothing; packed, padded and accumulated rows
give the same step; a resumed training ends in the same weights as an uninterrupted one; and nothing is left in the
model, also after an exception.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from emlib.core.defense import Defense
from emlib.core.errors import EmlibError
from emlib.core.hooks import FINE_TUNING
from emlib.core.registry import kinds
from emlib.core.temporary import temporary_folder
from emlib.models.batches import collate, pack
from emlib.models.kernels import fitted
from emlib.training.bench import Bench, interrupted, step

CLOSE = 1e-3  # of a gradient's norm: sums in another order differ by rounding
SECANT = 0.03  # of a gradient's norm: the error allowed for a finite difference in float32
CPU = torch.device("cpu")


class NonconformingDefense(EmlibError):
    """A defense fails a test; the message says which, and by how much."""


@dataclass(frozen=True, repr=False)
class Report:
    """The tests that a defense passed, one line each."""

    defense: Defense
    lines: list[str] = field(default_factory=list)

    def __repr__(self) -> str:  # what a notebook shows
        return "\n".join([f"{self.defense.kind}: passes all tests", *(f"  {line}" for line in self.lines)])


def check(cls: type[Defense], **options: Any) -> Report:
    """Test a defense class with some options, which must fit a model of 4 layers.

    Raises:
        NonconformingDefense: it fails a test.
    """
    defense = cls(**options)
    acts = [hook for hook in FINE_TUNING if defense.has(hook)]
    _require(bool(acts), f"the defense {defense.why_inert(FINE_TUNING)}")
    _require(kinds().get(defense.kind) is cls, f"profiles do not find the class by its kind '{defense.kind}': another "
             "class has the same kind, or none is registered")
    _require(cls.model_validate_json(defense.model_dump_json()) == defense,
             "the options change when they are written to JSON and read back")
    report = Report(defense, [f"acts by {', '.join(acts)}"])
    with temporary_folder() as folder, torch.random.fork_rng(devices=[]):
        bench = Bench(defense, folder)
        for test in (_nothing_is_left, _gradient, _batching, _null, _resuming):
            report.lines.append(test(bench))
    return report


def _require(passed: bool, message: str) -> None:
    if not passed:
        raise NonconformingDefense(message)


def _nothing_is_left(bench: Bench) -> str:
    """Check that modules and logits are as before, after a step and after an exception."""
    ids, objective = torch.arange(9)[None], bench.objective(bench.defense)
    batches = [collate(rows, CPU) for rows in bench.groups]
    with bench.model() as model:
        before, logits = _shape(model), model(input_ids=ids).logits
        step(model, batches, objective)
        for ends in (0, 1):  # the first and the second pass through the last block, as a user's error would end them
            with suppress(InterruptedError), interrupted(model, after=ends):
                step(model, batches, objective)
        if bench.defense.has("active"):
            with suppress(InterruptedError), bench.defense.active(model, bench.artefacts):
                raise InterruptedError
        _require(_shape(model) == before and torch.equal(model(input_ids=ids).logits, logits),
                 "the model is changed after a step or an exception: use a context manager that undoes every change")
    return "nothing is left in the model after a step and after an exception"


def _shape(model: nn.Module) -> list[tuple[type, int]]:
    """Return the type of each module, and the number of its hooks."""
    return [(type(part), len(part._forward_hooks) + len(part._forward_pre_hooks)) for part in model.modules()]


def _gradient(bench: Bench) -> str:
    """Compare the gradient of the defense's loss term with a finite difference along that gradient."""
    defense = bench.defense
    if not (defense.has("penalty") or defense.has("head_kl")):
        return "no term of the loss"
    batches = [collate(rows, CPU) for rows in bench.groups]
    objective = bench.objective(defense, cross_entropy=0.0)
    with bench.model() as model:
        weights = [p for p in model.parameters() if p.requires_grad]
        gradient = step(model, batches, objective)[1]
        norm = float(gradient.norm())
        direction = gradient / norm if norm else torch.randn_like(gradient) / gradient.numel() ** 0.5
        ends = []
        for side in (1, -1):
            _move(weights, side * 1e-2 * direction)
            ends.append(defense.factor * step(model, batches, objective)[0][defense.kind])
            _move(weights, -side * 1e-2 * direction)
    slope = (ends[0] - ends[1]) / 2e-2
    _require(math.isfinite(norm) and math.isfinite(slope), f"the penalty of '{defense.kind}' or its gradient is not "
             f"finite: its gradient's norm is {norm:.4g}, and a finite difference along it {slope:.4g}")
    _require(norm > 0 or slope != 0, "the penalty has no gradient and does not change with the weights on the rows of "
             "this check: with these options it may do nothing")
    _require(abs(slope - norm) <= SECANT * max(abs(slope), norm),
             f"the gradient of the penalty has norm {norm:.4g}, but a finite difference along it gives {slope:.4g}: a "
             "part of the penalty is detached from the graph, or depends on more than the two passes")
    return f"the gradient of the penalty (norm {norm:.3g}) matches its value"


def _move(weights: list[torch.nn.Parameter], by: Tensor) -> None:
    for one, change in zip(weights, by.split([one.numel() for one in weights]), strict=True):
        one.data += change.view_as(one)


def _batching(bench: Bench) -> str:
    """Check that one padded pass, one packed pass and one pass per row give the same step."""
    groups, objective = bench.groups, bench.objective(bench.defense)
    with bench.model() as model:
        metrics, whole = step(model, [collate(rows, CPU) for rows in groups], objective)
        with fitted(model):
            packed = step(model, [pack(rows, CPU) for rows in groups], objective)
        for batching, (others, gradient) in (("packed", packed), ("accumulated", step(
                model, [collate([row], CPU) for rows in groups for row in rows], objective))):
            apart = float((gradient - whole).norm() / whole.norm())
            metrics_apart = max(abs(others[name] - value) / max(abs(value), 1e-6) for name, value in metrics.items())
            _require(apart < CLOSE and metrics_apart < CLOSE,
                     f"{batching} rows give another step than padded ones: the gradients differ by {apart:.2g} of "
                     f"their norm, the metrics by {metrics_apart:.2g}. The penalty must be a sum over "
                     f"'{bench.defense.per}', without padding")
    return "packed, padded and accumulated rows give the same step"


def _null(bench: Bench) -> str:
    """Check that at its null setting the defense adds nothing to a step, and training is plain fine-tuning exactly."""
    defense = bench.defense
    if not defense.null:
        return "no null setting"
    nothing = defense.model_copy(update=dict(defense.null))
    nothing.prepare(bench.artefacts)
    _require(nothing.is_null and not defense.is_null,
             f"the null setting {dict(defense.null)} does not switch the defense off, or the tested options equal it")
    with bench.model() as model:
        batch, kept = collate(bench.rows.own, CPU), bench.objective()
        plain = step(model, [batch], kept)[1]
        kept.defenses = [nothing]  # although `Objective` leaves out defenses at their null setting
        apart = float((step(model, [batch], kept)[1] - plain).norm() / plain.norm())
    _require(apart < CLOSE, f"at {dict(defense.null)} the defense changes the gradient by {apart:.2g} of its norm")
    same = torch.equal(bench.train("plain"), bench.train("nothing", nothing))
    _require(same, f"at {dict(defense.null)} training is not plain fine-tuning")
    return f"at {dict(defense.null)} training is plain fine-tuning"


def _resuming(bench: Bench) -> str:
    """Check that a training that is killed after its first checkpoint and resumed ends in the same weights."""
    whole, killed = bench.train("whole", bench.defense), bench.train("killed", bench.defense, kill_after=1)
    _require(torch.equal(whole, killed), "a resumed training ends in other weights than an uninterrupted one: save "
             "what the defense keeps between steps by state() and restore()")
    return "a resumed training ends in the same weights"
