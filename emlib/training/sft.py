"""Supervised fine-tuning of an adapter: Table 6's recipe, a log line per step, and resumable checkpoints.

The study has its own training loop because every defense changes the loss of a step, and each loss term must be
normalised by the tokens of the whole step. On one machine's CPU the same seed gives the same adapter bit for bit (for
the same number of threads), also when the run is killed and resumed from a checkpoint: a step depends on the seed and
its number alone. Another processor adds numbers in another order.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from emlib.config import Training
from emlib.core.defense import restore, states
from emlib.core.files import append_record, write_records
from emlib.core.progress import bar
from emlib.core.seeds import derive
from emlib.data.chat import Encoded
from emlib.data.mixing import plan_steps
from emlib.models.batches import forward_batches
from emlib.models.kernels import fitted
from emlib.training import checkpoint
from emlib.training.finite import refuse_not_finite
from emlib.training.head import head_method
from emlib.training.keep import Keep, Keeping
from emlib.training.memory import explained_out_of_memory, peak_memory
from emlib.training.monitor import Evaluator, Monitoring, Watch
from emlib.training.objective import Objective, Totals
from emlib.training.online import Choosing, Offered
from emlib.training.ranks import ALONE, Ranks
from emlib.training.recompute import recomputing
from emlib.training.records import LOG, StepRecord, TrainingSummary, read_log

NONE_OFFERED = Offered()


def fine_tune(model: nn.Module, rows: Sequence[Encoded], settings: Training, *, seed: int, folder: Path,
              objective: Objective | None = None, added: Sequence[Encoded] = (), held_out: Sequence[Encoded] = (),
              offered: Offered = NONE_OFFERED, ranks: Ranks = ALONE, keep: Keep | None = None,
              limit: int | None = None, watch: Watch | None = None) -> TrainingSummary:
    """Train the trainable parameters of `model` on `rows`; log and checkpoints are in `folder`, where a run resumes.

    Without an objective it is plain fine-tuning: cross-entropy alone. `added` rows are spread through each epoch, and
    so are those that a defense chooses from the `offered` ones; on `held_out` rows it may have the loss measured. All
    `ranks` get the same arguments; the first one writes. `keep` says what is kept of the steps in between, and `watch`
    what is read of the model. With `limit` there are exactly so many steps, for any `epochs`.

    Raises:
        EmlibError: the loss or its gradient is NaN or infinite, and the step is named; or the GPU's memory does not
            suffice. The log is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    objective = objective or Objective()
    objective.before(model)
    steps = plan_steps(len(rows), settings.rows_per_step, settings.epochs, seed, len(added) + offered.count, limit)
    rows = [*rows, *added]
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = make_optimizer(list(parameters.values()), settings)
    log = _resumed(folder, parameters, optimizer, objective, ranks)
    done = len(log.records)
    choosing = Choosing(offered, len(steps), folder, done, ranks)
    take = _Steps(model, rows, steps, settings, seed, objective, choosing, optimizer, ranks, log.path).take
    keeping = Keeping(keep, len(steps), folder if ranks.first else None)
    last = keeping.last if keep is not None and keep.then_stop else len(steps)
    progress = bar(range(done, last), "training", "step", total=last, done=done)
    device = next(model.parameters()).device
    evaluate = Evaluator(model, held_out, settings.batch_size, ranks, objective.artefacts.get("monitor_inputs"),
                          len(steps) if limit is None else sys.maxsize)  # a few further steps may end before it looks
    with (explained_out_of_memory(settings, log.path), _training_mode(model), fitted(model) as unpacked_reason,
          peak_memory(device) as peak, recomputing(
              model, [*rows, *offered.largest], steps, settings, objective, ranks) as recompute):
        monitoring = Monitoring(watch, model, settings.batch_size, folder, done=done, total=len(steps),
                                writes=ranks.first)
        for number in progress:
            record = take(number)
            keeping.after(number + 1)
            record, stops = _shown(record, objective, evaluate, ranks, device)
            log.add(record)
            if stops:
                break  # the monitor reads below what its defenses leave
            monitoring.after(number + 1)
            progress.set_postfix(loss=f"{record.loss:.3f}", **monitoring.shown)
            if ranks.first and (number + 1) % settings.checkpoint_every == 0:
                checkpoint.save(folder, number + 1, parameters, optimizer, states(objective.defenses))
        objective.after(model)
        monitoring.after(len(log.records), last=True)
    keeping.rest(len(log.records))
    how = {"rows": f"not packed: {unpacked_reason}" if unpacked_reason else "packed", "recomputed": recompute.summary,
           "head": head_method(model, objective.compares_in_head)}
    truncated = sum(row.truncated for row in (*rows, *offered.rows))
    return _summary(log.records, type(optimizer).__name__, truncated, peak.mib, how, len(steps))


def _resumed(folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer,
             objective: Objective, ranks: Ranks) -> _Log:
    """Restore the last checkpoint of `folder`, and the defenses; return the log up to it, without later steps."""
    done = checkpoint.restore(folder, parameters, optimizer)
    log = _Log(folder / LOG, checkpoint.up_to(done, read_log(folder, done), folder), ranks)
    restore(objective.defenses, checkpoint.states_of_defenses(folder))
    if ranks.first:
        write_records(log.path, log.records)
    return log


def _summary(records: Sequence[StepRecord], optimizer: str, truncated: int, peak: float | None, how: dict[str, str],
             planned: int) -> TrainingSummary:
    """Add up the records of all steps."""
    return TrainingSummary(
        len(records), sum(r.tokens for r in records), round(sum(r.seconds for r in records), 3), records[-1].loss,
        optimizer, truncated, peak, how, planned, sum(r.scored for r in records))


@dataclass(frozen=True)
class _Log:
    """The lines of a training's log: each process has all of them, and the first one writes them."""

    path: Path
    records: list[StepRecord]
    ranks: Ranks

    def add(self, record: StepRecord) -> None:
        """Add the line of a finished step."""
        self.records.append(record)
        if self.ranks.first:
            append_record(self.path, record)


@dataclass(frozen=True)
class _Steps:
    """The optimizer steps of one training.

    `plan` has the places in `rows` of each step's rows; a place behind them is one for a row that a defense chooses.
    """

    model: nn.Module
    rows: Sequence[Encoded]
    plan: Sequence[Sequence[int]]
    settings: Training
    seed: int
    objective: Objective
    choosing: Choosing
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    log: Path

    def take(self, number: int) -> StepRecord:
        """Compute the gradient of step `number` (from 0), update the parameters, and return the line of the log.

        Raises:
            EmlibError: the loss, its gradient or a penalty is NaN or infinite.
        """
        started, batch_size = time.perf_counter(), self.settings.batch_size
        torch.manual_seed(derive(self.seed, "dropout", number))
        fixed = [self.rows[place] for place in self.plan[number] if place < len(self.rows)]
        chosen, scores, scored = self.choosing.rows(len(self.plan[number]) - len(fixed), number, self.model,
                                                    self.objective, batch_size)
        totals, metrics = _backward(self.model, [*fixed, *chosen], batch_size, self.objective, self.ranks)
        trained = [weights for group in self.optimizer.param_groups for weights in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(trained, self.settings.max_grad_norm))
        loss = metrics.pop("loss")
        refuse_not_finite(number, len(self.plan), loss, norm, metrics, self.log)
        rate = learning_rate(number, len(self.plan), self.settings)
        _update(self.optimizer, rate)
        return StepRecord(number + 1, loss, rate, norm, totals.all_tokens, totals.response_tokens,
                          round(time.perf_counter() - started, 4), metrics | scores, scored)


def _shown(record: StepRecord, objective: Objective, evaluate: Evaluator, ranks: Ranks,
           device: torch.device) -> tuple[StepRecord, bool]:
    """Show a finished step to the defenses; return it with the time that they took, and whether one ends training."""
    if not objective.watches:
        return record, False
    started = time.perf_counter()
    stops = ranks.any_wants(objective.on_step(record, evaluate), device)
    return replace(record, seconds=round(record.seconds + time.perf_counter() - started, 4)), stops


def learning_rate(step: int, steps: int, settings: Training) -> float:
    """Return the rate of step `step` (from 0): linear warm-up, then linear decay to 0, or constant."""
    if step < settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    if settings.scheduler == "constant":
        return settings.learning_rate
    return settings.learning_rate * (steps - step) / max(1, steps - settings.warmup_steps)


def make_optimizer(parameters: list[nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    """Return the optimizer of the profile, or torch's AdamW where Table 6's 8-bit one cannot run.

    The 8-bit optimizer needs bitsandbytes and a GPU. The training summary names the one that ran.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    eight_bit = settings.optimizer == "adamw_8bit" and parameters[0].device.type == "cuda"
    if eight_bit and importlib.util.find_spec("bitsandbytes") is not None:
        from bitsandbytes.optim import AdamW8bit  # imported only where it is installed and used

        return AdamW8bit(parameters, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)


def _backward(model: nn.Module, rows: Sequence[Encoded], batch_size: int, objective: Objective,
              ranks: Ranks) -> tuple[Totals, dict[str, float]]:
    """Add up one step's gradients and metrics; every term is a mean over all its rows, for any batching."""
    batches = forward_batches(rows, batch_size, model, responses_only=objective.reads_responses_only)
    totals = Totals.of(batches)
    metrics: Counter[str] = Counter()
    for batch in ranks.dealt(batches):
        for name, share in objective.backward(model, batch, totals).items():
            metrics[name] += share  # type: ignore[assignment]
    ranks.sum_gradients(model)
    return totals, ranks.summed(metrics, batches[0].input_ids.device)


def _update(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into training mode; undone at the end."""
    model.train()
    try:
        yield
    finally:
        model.eval()
