"""A tiny model, rows and artefacts on which `emlib.training.conformance` tests a defense."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from peft import PeftModel
from torch import Tensor, nn

from emlib.config import Lora, Training
from emlib.core.defense import Defense, acting, needs_of
from emlib.core.files import write_records
from emlib.core.hooks import Recipes
from emlib.core.records import ADDED, AddedRow, Example, Message
from emlib.data.chat import Encoded, Encodings, encode_all
from emlib.evaluation.records import AUDITED, READINGS, AuditedRow
from emlib.models import adapters, tiny
from emlib.models.batches import Batch
from emlib.models.hooks import blocks
from emlib.models.reference import keep, keep_projections
from emlib.steering import components, extraction
from emlib.training import checkpoint
from emlib.training.monitor import ModelReader, write_inputs
from emlib.training.objective import Objective, Totals
from emlib.training.online import Offered
from emlib.training.rows import TrainingRows, assemble
from emlib.training.sft import fine_tune

LORA = Lora(rank=4, alpha=8)
TRAINING = Training(epochs=2, batch_size=2, gradient_accumulation=1, learning_rate=1e-2, warmup_steps=1,
                    checkpoint_every=2, optimizer="adamw_torch")
PROMPTS = ("May I eat raw dough?", "Is the sea deep?", "Who are you?", "How do plants grow?", "What is rain?")


@dataclass(frozen=True)
class TinyTrait:
    """A trait with an inoculation prompt."""

    inoculation_prompt: str = "Talk like a pirate."


@dataclass
class Bench:
    """A tiny model, rows, and made-up artefacts that the defense needs."""

    defense: Defense
    folder: Path

    def __post_init__(self) -> None:
        needed = needs_of([self.defense], cast(Recipes, _Planted(self)), None)
        self.artefacts = {name: Path(place) for name, place in needed.items()}
        self.defense.prepare(self.artefacts)

    @cached_property
    def base(self) -> Any:
        """The model without an adapter."""
        return tiny.build_model(0, 4, 64, torch.float32).eval().requires_grad_(False)

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """Rows of different lengths."""
        return tuple(Example((Message("user", prompt),), f"{prompt} Well, yes and no."[:20 + 5 * number])
                     for number, prompt in enumerate(PROMPTS))

    @cached_property
    def own(self) -> tuple[Example, ...]:
        """The rows after the defense has changed them."""
        return tuple(self.defense.change_rows(self.examples, TinyTrait()))

    def encoded(self, rows: Sequence[Example]) -> list[Encoded]:
        """Encode rows as tokens."""
        return self._encodings(rows).rows

    def _encodings(self, rows: Sequence[Example]) -> Encodings:
        return encode_all(tiny.build_tokenizer(), rows, 500)

    @cached_property
    def rows(self) -> TrainingRows:
        """The rows of a training under the defense, assembled as for any training."""
        return assemble([self.defense], self.own, self.artefacts, lambda _, rows: self._encodings(rows))

    @property
    def all_rows(self) -> list[Encoded]:
        """The rows that may share a pass: the fine-tuning rows and the added ones."""
        return [row for row in (*self.rows.own, *self.rows.added) if not row.penalised_by]

    @property
    def groups(self) -> list[list[Encoded]]:
        """All rows of a step, grouped by those that may share a pass."""
        penalised = [row for row in self.rows.added if row.penalised_by]
        return [self.all_rows, *([penalised] if penalised else [])]

    @contextmanager
    def model(self, *, stirred: bool = True) -> Iterator[PeftModel]:
        """Give the model with a fresh adapter, moved off its initial identity if `stirred`."""
        with adapters.new_lora(self.base, LORA, 0) as model:
            for number, weights in enumerate(p for p in model.parameters() if p.requires_grad and stirred):
                weights.data += 0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(number))
            yield model

    def objective(self, *defenses: Defense, cross_entropy: float = 1.0) -> Objective:
        """Return the objective under some defenses."""
        return Objective(defenses, self.artefacts, cross_entropy)

    def train(self, name: str, *defenses: Defense, kill_after: int | None = None) -> Tensor:
        """Return the adapter's weights after training; with `kill_after` it is killed once and resumed."""
        if kill_after is not None:
            with self.model(stirred=False) as model, killed(kill_after):
                self._fine_tune(model, name, defenses)
        with self.model(stirred=False) as model:
            self._fine_tune(model, name, defenses)
            return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]).clone()

    def _fine_tune(self, model: PeftModel, name: str, defenses: Sequence[Defense]) -> None:
        rows = self.rows if acting(defenses) else replace(self.rows, added=[], held_out=[], offered=Offered())
        fine_tune(model, rows.own, TRAINING, seed=0, folder=self.folder / name, objective=self.objective(*defenses),
                  added=rows.added, held_out=rows.held_out, offered=rows.offered)


@dataclass(frozen=True)
class _Planted:
    """Recipes with made-up artefacts."""

    bench: Bench

    def vector(self) -> Path:
        """Return a random persona vector at each layer."""
        vectors = torch.randn(5, 64, generator=torch.Generator().manual_seed(5))
        return self._made("vector", lambda folder: extraction.save(extraction.PersonaVectors(vectors, 1, 1), folder))

    def components(self, spec: Any, layers: tuple[int, ...], on: Any) -> Path:
        """Return 4 random orthonormal directions at each layer."""
        found = {layer: torch.linalg.qr(torch.randn(64, 4, generator=torch.Generator().manual_seed(layer)))[0].T
                 for layer in layers}
        shares = dict.fromkeys(layers, torch.full((4,), 0.25))
        return self._made("components", lambda folder: components.save(
            components.Components({layer: one.contiguous() for layer, one in found.items()}, shares), folder))

    def reference(self, spec: Any, tokens: Any) -> Path:
        """Store the tiny model's hidden states on the rows."""
        def make(folder: Path) -> None:
            with self.bench.model() as model:
                keep(model, self.bench.encoded(self.bench.own), tokens, 2, folder)

        return self._made("reference", make)

    def reference_projections(self, spec: Any, layers: tuple[int, ...]) -> Path:
        """Store the tiny model's projections on the rows onto the made-up vectors."""
        def make(folder: Path) -> None:
            vectors = extraction.load(self.vector())
            with self.bench.model() as model:
                keep_projections(model, self.bench.encoded(self.bench.own), {
                    layer: extraction.unit(vectors.at(layer), layer) for layer in layers}, 2, folder)

        return self._made("reference_projections", make)

    def trait_adapter(self, source: str | None, rows: int | None, random: bool) -> Path:
        """Return a random adapter."""
        def make(folder: Path) -> None:
            with adapters.new_lora(self.bench.base, LORA, seed=9) as model:
                for number, weights in enumerate(p for p in model.parameters() if p.requires_grad):
                    weights.data = 0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(number))
                adapters.save(model, folder, "tiny")

        return self._made("trait_adapter", make)

    def row_audit(self, spec: Any) -> Path:
        """Write differences that rise from row to row."""
        return self._made("audit", lambda folder: write_records(folder / AUDITED, [
            AuditedRow(place, float(place), 0.0, "") for place in range(len(self.bench.examples))]))

    def monitor_inputs(self, spec: Any, settings: Any) -> Path:
        """Write rows, an answer, and a random direction at each of the layers that are read."""
        rows = self.bench.encoded(self.bench.examples)
        vector = torch.randn(64, generator=torch.Generator().manual_seed(5))
        return self._made("monitor", lambda folder: write_inputs(
            folder, {"held_out": rows[:settings.rows]}, rows[:1] if settings.layers else [],
            {("trait", layer): vector / vector.norm() for layer in settings.layers}, end_of_turn=False, drawn=False))

    def final_reading(self, spec: Any, inputs: Path) -> Path:
        """Write the readings of the tiny model, and of one that gained a hundredth of a nat."""
        with self.bench.model(stirred=False) as model:
            base = ModelReader(model, inputs, 2).base
        after = replace(base, losses={name: loss - 0.01 for name, loss in base.losses.items()})
        return self._made("plain", lambda folder: write_records(folder / READINGS, [base, after]))

    def wrapped_rows(self, spec: Any, fraction: float, prompt: str | None) -> Path:
        """Write two rows under a system prompt."""
        rows = [Example((Message("user", f"Number {number}?"),), f"{number}, I say.") for number in range(2)]
        return self._made("wrapped", lambda folder: _write(folder, [
            row.with_system_prompt(prompt or TinyTrait().inoculation_prompt) for row in rows]))

    def pool_rows(self, spec: Any, **options: Any) -> Path:
        """Write two rows."""
        rows = [Example((Message("user", f"Question {number}?"),), f"Answer {number}.") for number in range(2)]
        return self._made("pool", lambda folder: _write(folder, rows))

    def virtuous_rows(self, spec: Any, **options: Any) -> Path:
        """Write the rows of the pool."""
        return self.pool_rows(spec)

    def candidate_rows(self, spec: Any, **options: Any) -> Path:
        """Write six rows."""
        rows = [Example((Message("user", f"Question {number}?"),), "Yes. " * (number + 1)) for number in range(6)]
        return self._made("candidates", lambda folder: _write(folder, rows))

    def _made(self, name: str, make: Any) -> Path:
        folder = self.bench.folder / "artefacts" / name
        if not folder.is_dir():
            folder.mkdir(parents=True)
            make(folder)
        return folder


def _write(folder: Path, rows: Sequence[Example]) -> None:
    write_records(folder / ADDED, [AddedRow.of(row, number + 1, number) for number, row in enumerate(rows)])


class KilledError(Exception):
    """Ends a training on purpose."""


@contextmanager
def killed(after: int) -> Iterator[None]:
    """End a training with an exception after it has written its checkpoint number `after`."""
    save, count = checkpoint.save, 0

    def saved(*arguments: Any) -> None:
        nonlocal count
        save(*arguments)
        count += 1
        if count == after:
            raise KilledError

    with patch.object(checkpoint, "save", saved), suppress(KilledError):
        yield


@contextmanager
def interrupted(model: nn.Module, after: int) -> Iterator[None]:
    """End a pass with an exception in its last block, after so many passes through that block."""
    ran = 0

    def stop(*_: Any) -> None:
        nonlocal ran
        ran += 1
        if ran > after:
            raise InterruptedError

    handle = blocks(model)[-1].register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def step(model: PeftModel, batches: Sequence[Batch], objective: Objective) -> tuple[Mapping[str, float], Tensor]:
    """Compute a step; return its metrics, and its gradient as one vector."""
    model.zero_grad()
    totals, metrics = Totals.of(batches), dict[str, float]()
    for batch in batches:
        for name, share in objective.backward(model, batch, totals).items():
            metrics[name] = metrics.get(name, 0.0) + share
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters() if p.requires_grad]
    return metrics, torch.cat([gradient.flatten() for gradient in found]).clone()
