"""Packed rows as on a GPU, by a plain kernel: every defense, the scores and a training are those of padded rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from emlib.config import Lora, Training
from emlib.core.defense import Defense
from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector
from emlib.models import adapters, kernels
from emlib.models.batches import collate, forward_batches, largest_pass, pack
from emlib.models.kernels import fitted, packs
from emlib.models.kernels.varlen import by_torch, packed_attention
from emlib.models.load import ChatModel
from emlib.models.reference import keep
from emlib.scoring.nll import batch_nll
from emlib.training.objective import Objective, Totals
from emlib.training.records import TrainingSummary, read_log
from emlib.training.sft import fine_tune
from tests.made import a_row_at_a_time, planted, some_rows

CPU = torch.device("cpu")
ARTEFACTS = planted(torch.randn(64, generator=torch.Generator().manual_seed(5)))
DEFENSES: dict[str, tuple[Defense, ...]] = {
    "plain": (), "kl": (Kl(kind="kl", weight=0.3),), "kl response": (Kl(kind="kl", weight=0.3, tokens="response"),),
    "ldifs": (Ldifs(kind="ldifs", weight=0.2, every=2),),
    "normalized": (Ldifs(kind="ldifs", weight=0.2, every=2, normalize=True),),
    "steered": (PersonaVector(kind="persona_vector", strength=2.0, layer=3),)}
DEFENSES["all"] = (*DEFENSES["kl"], *DEFENSES["ldifs"], *DEFENSES["steered"])


@pytest.fixture
def model(tiny: ChatModel) -> Iterator[PeftModel]:
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as adapted:
        for index, p in enumerate(p for p in adapted.parameters() if p.requires_grad):
            p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(index))
        yield adapted


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.ATTENTION, "cpu", partial(packed_attention, kernel=a_row_at_a_time))


def step(model: PeftModel, batches: list, defenses: tuple[Defense, ...]) -> tuple[dict[str, float], Tensor]:
    model.zero_grad()
    totals = Totals.of(batches)
    said: dict[str, float] = {}
    for batch in batches:
        for name, share in Objective(defenses, ARTEFACTS).backward(model, batch, totals).items():
            said[name] = said.get(name, 0.0) + share
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    return said, torch.cat([g.flatten() for g in gradients if g is not None]).clone()


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_has_the_gradient_of_padded_rows(model: PeftModel, name: str, recomputed: bool) -> None:
    rows = some_rows(5)
    said, expected = step(model, [collate(rows, CPU)], DEFENSES[name])
    with packed_attention(model, a_row_at_a_time) as why:
        assert why == ""
        model.train()
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        said_packed, found = step(model, [pack(rows[:3], CPU), pack(rows[3:], CPU)], DEFENSES[name])
        model.gradient_checkpointing_disable()
    assert said_packed == pytest.approx(said, rel=1e-4)
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.usefixtures("like_a_gpu")
def test_scores_are_those_of_padded_rows(tiny: ChatModel) -> None:
    rows = some_rows(6)
    with pytest.MonkeyPatch.context() as padded:
        padded.delitem(kernels.ATTENTION, "cpu")
        expected = batch_nll(tiny.model, rows)
    assert batch_nll(tiny.model, rows) == pytest.approx(expected, rel=1e-4)
    with fitted(tiny.model):
        assert packs(tiny.model)


def trained(tiny: ChatModel, folder: Path) -> tuple[list[float], TrainingSummary]:
    settings = Training(batch_size=2, gradient_accumulation=2, learning_rate=1e-2, warmup_steps=0, epochs=2)
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as model:
        keep(model, some_rows(9), "all", 2, folder / "reference")
        defenses = [d.model_copy(update={"reference": "stored"}) if d.kind == "kl" else d for d in DEFENSES["all"]]
        objective = Objective(defenses, ARTEFACTS | {"reference": folder / "reference"})
        summary = fine_tune(model, some_rows(9), settings, seed=0, folder=folder, objective=objective)
    return [number for r in read_log(folder) for number in (r.loss, r.grad_norm, *r.penalties.values())], summary


def test_a_training_is_the_same_and_says_what_it_went_by(
        tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = trained(tiny, tmp_path / "cpu")
    for name, kernel in (("packed", a_row_at_a_time), ("padded", by_torch)):
        monkeypatch.setitem(kernels.ATTENTION, "cpu", partial(packed_attention, kernel=kernel))
        found, summary = trained(tiny, tmp_path / name)
        assert found == pytest.approx(expected, rel=1e-3)
        assert (summary.how["rows"] == "packed") == (name == "packed")
    assert summary.how["rows"].startswith("not packed: the kernel for packed rows does not run")


def test_a_packed_pass_on_a_gpu_takes_no_more_than_a_padded_one(tiny: ChatModel) -> None:
    rows = some_rows(16)
    longest, total = max(len(row.input_ids) for row in rows), sum(len(row.input_ids) for row in rows)
    with packed_attention(tiny.model, a_row_at_a_time):
        pass  # proved where it can run
    elsewhere = tiny.model.to("meta")  # as little a CPU as a GPU is
    padded = forward_batches(rows, 4, elsewhere)
    assert largest_pass([rows], 4, elsewhere) == 4 * longest == padded[0].input_ids.numel()
    with packed_attention(elsewhere, a_row_at_a_time):
        found = forward_batches(rows, 4, elsewhere)
        widths = [batch.input_ids.shape[1] for batch in found]
        assert [len(batch.input_ids) for batch in found] == [1] * len(found)
        assert max(widths) == largest_pass([rows[:2], rows], 4, elsewhere) <= 4 * longest
        assert sum(widths) == total  # nothing is filled up
        assert len(found) == -(-total // (4 * longest)) < len(padded)
        assert largest_pass([rows[:2]], 4, elsewhere) == sum(len(row.input_ids) for row in rows[:2])
    assert sorted(key for batch in found for key in batch.keys) == sorted(row.key for row in rows)
