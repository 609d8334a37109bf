"""Reference states from disk: found again, of no effect on training, gone on with after a kill, missed aloud."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emlib.config import Lora, Training
from emlib.core.errors import StoreError
from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.models import adapters, reference
from emlib.models.batches import collate
from emlib.models.load import ChatModel
from emlib.models.logprobs import last_hidden
from emlib.models.reference import StoredReference, keep
from emlib.training.objective import Objective
from emlib.training.records import read_log
from emlib.training.sft import fine_tune
from tests.made import some_rows

CPU = torch.device("cpu")
SETTINGS = Training(batch_size=2, gradient_accumulation=1, learning_rate=1e-2, warmup_steps=0, optimizer="adamw_torch")


@pytest.mark.parametrize("tokens", ["all", "response"])
def test_a_row_is_found_again_in_any_order_and_batch(tiny: ChatModel, tmp_path: Path, tokens: str) -> None:
    rows = some_rows(5)
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as model:
        keep(model, rows, tokens, batch_size=2, folder=tmp_path)
    stored = StoredReference(tmp_path)
    for chosen in ([rows[3]], [rows[4], rows[0]], rows):
        batch = collate(chosen, CPU)
        expected = []
        for row in chosen:
            hidden = last_hidden(tiny.model, torch.from_numpy(row.input_ids)[None], None)[0]
            counts = torch.from_numpy(row.response_mask)
            expected.append(hidden if tokens == "all" else hidden[:-1][counts[1:]])
        torch.testing.assert_close(stored.of(batch), torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_training_with_stored_states_is_training_with_computed_ones(tiny: ChatModel, tmp_path: Path) -> None:
    """Up to rounding: the states were kept of all rows in one pass, and are computed in the passes of the steps.

    How a product of matrices sums up depends on its size, and on which sizes alike is the processor's affair.
    """
    rows, losses = some_rows(6), {}
    for name in ("computed", "stored"):
        with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as model:
            if name == "stored":
                keep(model, rows, "all", 1, tmp_path / "kept")
            objective = Objective([Kl(weight=0.5, reference=name)], {"reference": tmp_path / "kept"})
            fine_tune(model, rows, SETTINGS, seed=0, folder=tmp_path / name, objective=objective)
        losses[name] = [(r.loss, r.grad_norm, r.penalties["kl"]) for r in read_log(tmp_path / name)]
    for stored_step, computed_step in zip(losses["stored"], losses["computed"], strict=True):
        # float32 rounds to 6e-8, and what grows of that in three steps is some 1e-6. At the start the KL is 0 of that.
        assert stored_step == pytest.approx(computed_step, rel=1e-4, abs=1e-6)
    assert losses["stored"][-1][2] > 1e-3


def test_with_ldifs_the_pass_is_made_and_the_states_are_not_asked_for(tiny: ChatModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    objective = Objective([Kl(reference="stored"), Ldifs(every=2)], {"reference": tmp_path / "empty"})
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as model:
        fine_tune(model, some_rows(2), SETTINGS, seed=0, folder=tmp_path, objective=objective)
    assert set(read_log(tmp_path)[0].penalties) == {"kl", "ldifs"}


def test_shards_that_are_there_are_not_made_again(
        tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "ROWS_A_SHARD", 2)
    rows = some_rows(5)
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as model:
        size = keep(model, rows, "all", 1, tmp_path)
        shards = sorted(tmp_path.glob("shard-*"))
        assert len(shards) == 3
        shards[1].unlink()
        before = {path: path.stat().st_mtime_ns for path in (shards[0], shards[2])}
        assert keep(model, rows, "all", 1, tmp_path) == size
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert StoredReference(tmp_path).of(collate(rows, CPU)).shape == (sum(len(row.input_ids) for row in rows), 64)


def test_rows_that_were_not_kept_are_an_error(tiny: ChatModel, tmp_path: Path) -> None:
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as model:
        keep(model, some_rows(2), "all", 1, tmp_path)
    with pytest.raises(StoreError, match="of 3 of 3 rows"):
        StoredReference(tmp_path).of(collate(some_rows(3, seed=9), CPU))
