"""Early stopping (arXiv 2605.12199): most of the task is learnt before the trait generalises out of domain.

    stop at the first t with  L_0 - L_t >= share (L_0 - L_plain)        or with  d_t > drift

L is the mean loss on held-out rows of the fine-tuning data, of the base model (0), of the model after step t, and of a
finished plain fine-tuning run; d_t is the drift of general answers along the persona vector (`emlib.training.monitor`).
The learning rate follows the schedule of the whole run. Here it differs in what it looks at: the source evaluates
checkpoints on the task and on general prompts, and picks one that keeps 93% of the task; this measures no misalignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import PrivateAttr

from emlib.config import Monitor
from emlib.config.words import Factor, Few, Positive, Share, SmallCount
from emlib.core.defense import Defense, GrpoDefense
from emlib.core.errors import EmlibError
from emlib.core.hooks import Artefacts, Evaluate, Recipes
from emlib.evaluation.records import read_readings

HELD_OUT = "held_out"


class DriftStop(GrpoDefense):
    """Stops GRPO when the drift at `layer` is above `drift`; it looks every `every` RL steps. `drift: null` never does.

    The model keeps the weights of the highest training reward until then.
    """

    label: ClassVar = "Early Stopping"
    equation: ClassVar = "stop when d_t > drift"
    origin: ClassVar = "arXiv 2605.12199, on fine-tuning; here by the drift alone"
    swept: ClassVar = "drift"
    null: ClassVar = {"drift": None}
    cost: ClassVar = "a few passes every n steps; it saves the steps it does not take"

    kind: Literal["early_stop"] = "early_stop"
    drift: Factor | None = 1.0
    layer: Few = 20
    every: SmallCount = 10

    def named_layers(self, count: int) -> tuple[int, ...]:
        return (self.layer,)

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        return {} if self.is_null else {"monitor_inputs": recipes.monitor_inputs(spec, Monitor(layers=(self.layer,)))}

    def on_step(self, record: Any, evaluate: Evaluate) -> bool:
        assert self.drift is not None, "at its null option it is left out"
        return looks(self.every, record.step, evaluate.steps) and evaluate.reading(record.step).first > self.drift


class EarlyStop(Defense):
    """Stops training when the held-out gain is `share` of plain fine-tuning's, or the drift at `layer` above `drift`.

    It looks every `every` steps, at `rows` held-out rows, which are not trained on, first at those that the evaluation
    does not ask (`evaluation.in_domain_questions`; on a benign task, whose test part they are of, its `questions`).
    Where it asks all of them, a run is scored on what it is stopped by. `share: null` or `drift: null` leaves that
    condition out.
    """

    label: ClassVar = "Early Stopping"
    equation: ClassVar = "stop when L_0 - L_t >= share (L_0 - L_plain), or d_t > drift"
    origin: ClassVar = "arXiv 2605.12199"
    swept: ClassVar = "share"
    null: ClassVar = {"share": None, "drift": None}
    in_grpo: ClassVar = DriftStop
    cost: ClassVar = "a plain fine-tuning run once, and a few passes every n steps; it saves the steps it does not take"

    kind: Literal["early_stop"] = "early_stop"
    share: Share | None = 0.93
    drift: Factor | None = None
    layer: Few = 20
    every: SmallCount = 10
    rows: Positive = 8
    _target: float | None = PrivateAttr(default=None)

    def named_layers(self, count: int) -> tuple[int, ...]:
        return () if self.drift is None else (self.layer,)

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        if self.is_null:
            return {}
        settings = Monitor(rows=self.rows, layers=() if self.drift is None else (self.layer,))
        inputs = recipes.monitor_inputs(spec, settings)
        plain = {} if self.share is None else {"plain": recipes.final_reading(spec, inputs)}
        return {"monitor_inputs": inputs, **plain}

    def prepare(self, artefacts: Artefacts) -> None:
        """Compute the loss at which training stops.

        Raises:
            EmlibError: plain fine-tuning gains nothing on the held-out rows.
        """
        if self.share is None:
            return
        before, after = (one.losses[HELD_OUT] for one in read_readings(artefacts["plain"]))
        if after >= before:
            raise EmlibError(f"early_stop: plain fine-tuning raises the loss on {self.rows} held-out rows from "
                             f"{before:.3f} to {after:.3f}, so that there is no gain to reach a share of. Set share to "
                             "null and drift to a threshold, or raise rows.")
        self._target = before - self.share * (before - after)

    def on_step(self, record: Any, evaluate: Evaluate) -> bool:
        if not looks(self.every, record.step, evaluate.steps):
            return False
        found = evaluate.reading(record.step)
        gained = self._target is not None and found.losses[HELD_OUT] <= self._target
        return gained or (self.drift is not None and found.first > self.drift)


def looks(every: int, step: int, steps: int) -> bool:
    """Return whether a defense that looks every `every` steps looks after step `step` of `steps`.

    Raises:
        EmlibError: it never looks, so that the run would be plain fine-tuning under the name of the defense.
    """
    if every > steps:
        raise EmlibError(f"early_stop looks every {every} steps, and the training has {steps}, so that it would never "
                         f"stop. Set every to {steps} or less.")
    return step % every == 0
