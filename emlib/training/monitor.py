"""Reading a model between two steps of its training (arXiv 2606.07631; persona vectors: Chen et al. 2025).

    d_t = mean over answers of the mean over tokens of (h_t - h_0) . v / |v|      the drift along a persona vector v

h is the output of a layer on general answers, each of which counts the same, whatever its length; h_0 is the base
model's. A reading has the drift along each vector, the mean KL(model || base) per token of all these answers, in nats,
and the mean loss on rows that are not trained on, in nats per token of their answers. The model is read in evaluation
mode and without the contexts of its defenses (`Defense.active`), as it will be used. Weights, mode and random numbers
are then as before: no step changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emlib.config import Monitor as Settings
from emlib.config import Sampling
from emlib.core import digests
from emlib.core.errors import EmlibError
from emlib.core.files import append_record, write_records, write_text
from emlib.core.progress import say
from emlib.core.records import Question
from emlib.data.chat import Encoded, counted
from emlib.evaluation.records import READINGS, Reading, read_readings
from emlib.generation.sample import Request, draw_batch
from emlib.models import tensors
from emlib.models.adapters import adapter_off
from emlib.models.batches import forward_batches
from emlib.models.hooks import capture_activations, evaluating
from emlib.models.logprobs import head, predicting, token_kl
from emlib.training.job import read_rows, write_rows
from emlib.training.losses import mean_loss
from emlib.training.ranks import Ranks

ANSWERS, DIRECTIONS = "answers.json", "directions.safetensors"
LOSSES = ("held_out", "pool")  # of these rows, in files of these names
MONITORED_BY = "monitored_by.txt"  # beside a run's readings: the digest of what they are read from


def write_inputs(folder: Path, rows: Mapping[str, Sequence[Encoded]], answers: Sequence[Encoded],
                 directions: Mapping[tuple[str, int], Tensor], **facts: Any) -> None:
    """Write what a monitor reads: rows by name, answers, unit vectors by trait and layer, and how answers are drawn.

    The vectors keep their order, in which the first one is the profile's: a file of tensors is sorted by their names.
    """
    for name, listed in rows.items():
        write_rows(folder / f"{name}.json", listed)
    write_rows(folder / ANSWERS, answers)
    named = {f"{trait} {layer}": vector for (trait, layer), vector in directions.items()}
    tensors.save(folder / DIRECTIONS, named, {**facts, "order": list(named)})


def digest_of(folder: Path) -> str:
    """Return the digest of what `write_inputs` wrote into a folder."""
    names = (ANSWERS, DIRECTIONS, *(f"{name}.json" for name in LOSSES))
    return digests.of_value({name: digests.of_file(folder / name) for name in names if (folder / name).is_file()})


class ModelReader:
    """Reads a model with an adapter; `folder` has what `write_inputs` wrote.

    Attributes:
        base: the reading of the base model, as that of step 0.
    """

    def __init__(self, model: nn.Module, folder: Path, batch_size: int) -> None:
        started = time.perf_counter()
        self.model, self.batch_size = model, batch_size
        directions, self.facts = tensors.load(folder / DIRECTIONS)
        self.directions = {name: directions[name] for name in self.facts.get("order", directions)}
        self.rows = {name: read_rows(folder / f"{name}.json") for name in LOSSES if (folder / f"{name}.json").is_file()}
        self.answers = read_rows(folder / ANSWERS)
        with adapter_off(model), torch.no_grad():
            self._projections, self._states = self._look(self.answers)
            losses = self._losses()
        self.base = Reading(0, dict.fromkeys(self.directions, 0.0), losses, 0.0 if self.answers else None,
                            round(time.perf_counter() - started, 4))

    def read(self, step: int) -> Reading:
        """Read the model after a step, counted from 1."""
        started = time.perf_counter()
        with evaluating(self.model), torch.no_grad():
            answers, states = self.answers, self._states
            if self.facts["drawn"] and self.answers:
                answers = self._drawn(step)
                with adapter_off(self.model):
                    states = self._look(answers)[1]
            projections, ours = self._look(answers)
            drift = {name: value - self._projections[name] for name, value in projections.items()}
            kl = [token_kl(*pair, head(self.model)) for pair in zip(ours, states, strict=True)]
            losses = self._losses()
        return Reading(step, drift, losses, float(torch.cat(kl).mean()) if kl else None,
                       round(time.perf_counter() - started, 4))

    def _look(self, rows: Sequence[Encoded]) -> tuple[dict[str, float], list[Tensor]]:
        """Return the mean projection of the answers along each direction, and the states that predict their tokens."""
        found: dict[str, list[float]] = {name: [] for name in self.directions}
        states = []
        layers = {name: int(name.rpartition(" ")[2]) for name in self.directions}
        marked = [counted(row, end_of_turn=self.facts["end_of_turn"]) for row in rows]
        for batch in forward_batches(marked, self.batch_size, self.model, responses_only=True) if marked else ():
            with capture_activations(self.model, sorted(set(layers.values()))) as activations:
                hidden = batch.hidden(self.model)
            states.append(predicting(hidden, batch.input_ids, batch.response_mask)[0])
            for name, unit in self.directions.items():
                along = activations[layers[name]].float() @ unit.to(hidden.device)  # (lines, seq)
                found[name] += [float(along[place][batch.response_mask[place]].mean()) for place in batch.spans]
        return {name: float(np.mean(values)) for name, values in found.items() if values}, states

    def _losses(self) -> dict[str, float]:
        return {name: mean_loss(self.model, rows, self.batch_size) for name, rows in self.rows.items()}

    def _drawn(self, step: int) -> list[Encoded]:
        """Sample the model's own answers to the same prompts, with a seed for each step."""
        prompts = [row.input_ids[:-row.response_tokens] for row in self.answers]
        requests = [Request(Question(str(number), ""), 0, tuple(prompt.tolist()))
                    for number, prompt in enumerate(prompts)]
        found = draw_batch(self.model, requests, Sampling(max_new_tokens=self.facts["tokens"]), step,
                           set(self.facts["stops"]), known=self.facts["known"])
        return [Encoded(ids := np.array([*prompt, *one.tokens]), np.arange(len(ids)) >= len(prompt), not one.stopped)
                for prompt, one in zip(prompts, found, strict=True)]


@dataclass(frozen=True)
class Evaluator:
    """What the defenses of a training of `steps` steps may ask about its model (`emlib.core.hooks.Evaluate`).

    `inputs` is the folder of what `reading` reads; None: no defense reads it.
    """

    model: nn.Module
    held_out: Sequence[Encoded]
    batch_size: int
    ranks: Ranks
    inputs: Path | None
    steps: int

    def __call__(self) -> float:
        """Compute the mean loss on the held-out rows, in nats per token of their answers.

        Raises:
            EmlibError: there are no rows.
        """
        if not self.held_out:
            raise EmlibError("a defense asks for the loss on held-out rows, but holds out none. Return some rows from "
                             "its method `held_out`.")
        return mean_loss(self.model, self.held_out, self.batch_size, self.ranks)

    def reading(self, step: int) -> Reading:
        """Read the model after a step, counted from 1.

        Raises:
            EmlibError: no defense needs what is read.
        """
        return self._monitor.read(step)

    @cached_property
    def _monitor(self) -> ModelReader:
        if self.inputs is None:
            raise EmlibError("a defense reads the model, but its method `needs` returns no 'monitor_inputs'. Add "
                             "recipes.monitor_inputs(spec, settings) under that name.")
        return ModelReader(self.model, self.inputs, self.batch_size)


@dataclass(frozen=True)
class Watch:
    """How a run is monitored.

    Attributes:
        inputs: the folder of what is read.
        settings: how often, and the drift at which a line warns.
        show: is given all readings after each one.
    """

    inputs: Path
    settings: Settings
    show: Callable[[Sequence[Reading]], object] = len


class Monitoring:
    """The readings of a run of `total` steps, of which `done` are taken, in `folder`.

    Each process of a run has all of them, and the one that `writes` keeps them: all have to agree on when the model is
    read, because they compute together. A run that is killed and resumed has the same readings: those after the last
    checkpoint are made again. If another monitor reads it then, the readings of the former one are dropped.
    """

    def __init__(self, watch: Watch | None, model: nn.Module, batch_size: int, folder: Path, *, done: int, total: int,
                 writes: bool = True) -> None:
        self.watch, self.folder, self.total, self.writes = watch, folder, total, writes
        self.readings: list[Reading] = []
        if watch is not None:
            found = [one for one in read_readings(folder) if one.step <= done]
            file, digest = folder / MONITORED_BY, digest_of(watch.inputs)
            if file.is_file() and file.read_text(encoding="utf-8") == digest:
                self.readings = found
            # The processes compute the base model's reading together, so that all have read before one writes.
            self.monitor = ModelReader(model, watch.inputs, batch_size)
            if writes:
                self._begin(found, digest)
            if not self.readings:
                self._add(self.monitor.base)

    def _begin(self, found: Sequence[Reading], digest: str) -> None:
        """Write the readings that stay of those found, and the digest of what they are read from."""
        if found and not self.readings:
            say("monitor: it was changed since this training began, so its readings up to step "
                f"{found[-1].step} are dropped. The new ones begin where the training goes on.")
        write_records(self.folder / READINGS, self.readings)  # before the digest: a kill in between leaves no mixture
        write_text(self.folder / MONITORED_BY, digest)

    @property
    def shown(self) -> dict[str, str]:
        """The last drift along the first vector, for a progress bar; empty without a monitor."""
        drift = self.readings[-1].first if self.readings else None
        return {} if drift is None else {"drift": f"{drift:+.2f}"}

    def after(self, step: int, *, last: bool = False) -> None:
        """Read the model if it is due after this step, counted from 1; at the `last` one as its defenses leave it.

        After the last planned step it is read then alone: a defense may still change the finished adapter.
        """
        due = self.watch is not None and (last or (step % self.watch.settings.every == 0 and step != self.total))
        if due and self.readings[-1].step != step:
            self._add(self.monitor.read(step))

    def _add(self, reading: Reading) -> None:
        assert self.watch is not None, "only a watched run is read"
        warn, before = self.watch.settings.warn, self.readings[-1].first if self.readings else 0.0
        self.readings.append(reading)
        if not self.writes:
            return
        append_record(self.folder / READINGS, reading)
        if warn is not None and (reading.first or 0.0) > warn >= (before or 0.0):
            say(f"monitor: the drift is {reading.first:.2f} after step {reading.step} of {self.total}, above {warn:g}. "
                "The trait may generalise out of domain.")
        self.watch.show(self.readings)
