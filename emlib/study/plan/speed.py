"""The speed of the study's model: measured, scaled from a measured one, or estimated from the paper's figures.

Measured speeds are in `benchmarks/results/throughput.json`, with a row for each model and device. The speed of another
model on such a device is scaled by the number of parameters. If no GPU was measured, estimates use the assumptions of
`params/throughput.yaml` and say so. What artefacts in a store took is a measurement, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any, Literal

from emlib.config import Card, FolderModel, ModelSpec, Sampling
from emlib.config.shapes import Shape, shape
from emlib.config.words import Number
from emlib.core import paths
from emlib.core.plain_yaml import read_yaml
from emlib.core.schema import Strict, check
from emlib.store import manifests
from emlib.store.artefacts import Store

UNUSED = {"cpu": "'job.card' does not count, because this model is planned for the CPU",
          "gpu": "'job.card' does not count, because the speed of a GPU was measured"}
SMALL = 1e9  # parameters up to which a model is planned for the CPU on a machine without a GPU


class Gpu(Strict):
    """The assumptions on a GPU that was not measured; see `params/throughput.yaml`."""

    name: str
    hours: Number
    rows: Number
    parameters: Number
    tokens_a_row: Number
    train_over_read: Number
    bandwidth: Number
    tflops: Number
    recomputed: Number
    share: Number


class _Assumed(Strict):
    gpu: Gpu
    cpu_train_over_read: Number


class Measured(Strict):
    """The measured tokens per second of one model on one device."""

    model: str
    parameters: Number
    device: Literal["cpu", "gpu"]
    what: str
    date: str
    source: str
    train: Number
    write: Number
    read: Number | None = None


class _Table(Strict):
    benchmark: Literal["throughput"]
    rows: tuple[Measured, ...]


@dataclass(frozen=True)
class Speed:
    """Tokens per second on one device, and the basis of these numbers."""

    device: str
    basis: str
    train: float
    read: float
    write: float

    def seconds(self, *, train: float = 0, read: float = 0, write: float = 0) -> float:
        """Return the seconds that this many tokens take."""
        return train / self.train + read / self.read + write / self.write


def on_gpu(size: Shape) -> bool:
    """Whether a model is planned for a GPU: if this machine has one, or the model is too large for a CPU."""
    return size.parameters > SMALL or Path("/dev/nvidia0").exists()


def table(path: Path | None = None) -> tuple[Measured, ...]:
    """Read the measured speeds."""
    path = path or paths.ROOT / "benchmarks" / "results" / "throughput.json"
    return check(_Table, json.loads(path.read_text(encoding="utf-8")), str(path)).rows


def speed(spec: ModelSpec, sampling: Sampling, rows: tuple[Measured, ...] | None = None, *,
          gpu: bool = False, card: Card | None = None, recomputed: bool = False) -> Speed | None:
    """Return the speed of a model whose answers are sampled with `sampling`; None if it is not known.

    `gpu`: on a GPU, whatever this machine has. `card`: on this one, if no GPU was measured, and otherwise the basis
    says that it does not count; `recomputed`: where it trains with gradient checkpointing.
    """
    size, path = shape(spec), paths.PARAMS / "throughput.yaml"
    if size is None:
        return None
    assumed = check(_Assumed, read_yaml(path), str(path))
    device = "gpu" if gpu or on_gpu(size) else "cpu"
    known = [row for row in (table() if rows is None else rows) if row.device == device]
    if known:
        found = _scaled(min(known, key=lambda row: abs(log(row.parameters / size.parameters))), spec, size, assumed)
        return found if card is None else replace(found, basis=f"{found.basis}; {UNUSED[device]}")
    if device == "cpu":
        return None
    found = _estimated(assumed.gpu, size, sampling)
    return found if card is None else _on(card, assumed.gpu, found, recomputed=recomputed)


def _scaled(row: Measured, spec: ModelSpec, size: Shape, assumed: _Assumed) -> Speed:
    """Scale a measured speed by the number of parameters."""
    same = row.model == spec.name.rpartition("/")[2]
    factor = 1.0 if same else row.parameters / size.parameters
    over = assumed.cpu_train_over_read if row.device == "cpu" else assumed.gpu.train_over_read
    basis = f"measured on {row.date}" if same else (
        f"scaled by parameters from {row.model}, measured on {row.date}")
    return Speed(row.what, basis, factor * row.train, factor * (row.read or over * row.train), factor * row.write)


def _estimated(gpu: Gpu, size: Shape, sampling: Sampling) -> Speed:
    """Estimate training and reading from the paper's figure, and sampling from the memory bandwidth."""
    train = gpu.rows * gpu.tokens_a_row * gpu.parameters / (gpu.hours * 3600 * size.parameters)
    context = sampling.max_new_tokens / 2
    a_step = 2 * size.parameters + sampling.batch_rows * context * 4 * size.layers * size.keys  # bytes, in bfloat16
    write = sampling.batch_rows * gpu.bandwidth * gpu.share / a_step
    basis = (f"not measured: training as in Appendix E of the paper, {gpu.hours:g} GPU-hours for {gpu.rows:,.0f} "
             f"examples and {gpu.parameters / 1e9:g} billion parameters; sampling answers at {gpu.share:.0%} of the "
             "memory bandwidth (params/throughput.yaml)")
    return Speed(gpu.name, basis, train, train * gpu.train_over_read, write)


def _on(card: Card, gpu: Gpu, found: Speed, *, recomputed: bool) -> Speed:
    """Scale an estimate to another card: training and reading by its TFLOP/s, sampling by its bandwidth."""
    faster, wider = card.tflops / gpu.tflops, card.bandwidth * 1e12 / gpu.bandwidth
    longer = gpu.recomputed if recomputed else 1.0
    basis = (f"{found.basis}; scaled from an {gpu.name}, of {gpu.tflops:g} TFLOP/s and {gpu.bandwidth / 1e12:.3g} TB/s"
             + (f", and training {longer:g} times as long, with gradient checkpointing" if recomputed else ""))
    return Speed(f"a card of {card.tflops:g} TFLOP/s and {card.bandwidth:g} TB/s, a guess", basis,
                 faster * found.train / longer, faster * found.read, wider * found.write)


@dataclass(frozen=True)
class Taken:
    """The number of artefacts, and the sum of their tokens and of their seconds."""

    count: int
    tokens: int
    seconds: float


def trained(store: Store, spec: ModelSpec) -> Taken:
    """Sum up the model's adapters, of all profiles."""
    return _sum((facts["tokens"], facts["seconds"]) for facts, _ in _manifests(store, "adapter", spec))


def answered(store: Store, spec: ModelSpec) -> Taken:
    """Sum up the model's sets of answers that were sampled in one session, whose seconds are complete.

    Of sets that a server sampled at once, each has its share of the time. Sets from a server by an earlier version of
    emlib are left out, because their times overlap.
    """
    return _sum((facts["tokens"], facts.get("sampling_seconds", seconds))
                for facts, seconds in _manifests(store, "answers", spec)
                if facts.get("one_session") and ("sampling_seconds" in facts or facts.get("backend") == "transformers"))


def _manifests(store: Store, stage: str, spec: ModelSpec) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Yield facts and seconds of each finished artefact; none of a model in a folder, to avoid hashing its weights."""
    if isinstance(spec, FolderModel):
        return
    wanted = spec.identity
    for other, key in store.entries():
        found = manifests.read(store.root / stage / key) if other == stage else None
        if found is not None and found.settings["model"] == wanted:
            yield found.facts, found.seconds


def _sum(pairs: Iterator[tuple[int, float]]) -> Taken:
    listed = list(pairs)
    return Taken(len(listed), sum(tokens for tokens, _ in listed), sum(seconds for _, seconds in listed))
