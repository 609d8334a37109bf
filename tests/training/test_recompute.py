"""Recomputation by need: what is measured foretells what is kept, and what is free decides."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from emlib.config import Lora, Training
from emlib.core.defense import Defense
from emlib.core.errors import EmlibError
from emlib.data.chat import Encoded
from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector
from emlib.models import adapters, kernels
from emlib.models.batches import Batch, pack
from emlib.models.kernels import fitted
from emlib.models.kernels.varlen import packed_attention
from emlib.models.load import ChatModel
from emlib.training import recompute
from emlib.training.budget import CHUNK, MARGIN
from emlib.training.objective import Objective, Totals
from emlib.training.recompute import bytes_needed, bytes_per_token, decide, recomputing, saved_activations
from emlib.training.records import read_log
from emlib.training.sft import fine_tune
from tests.made import a_row_at_a_time, planted

CPU = torch.device("cpu")
VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(5))
DEFENSES: dict[str, tuple[Defense, ...]] = {
    "plain": (), "kl": (Kl(kind="kl", weight=0.3),), "ldifs": (Ldifs(kind="ldifs", weight=0.2, every=2),),
    "steered": (PersonaVector(kind="persona_vector", strength=2.0, layer=3),)}
SETTINGS = Training(batch_size=2, gradient_accumulation=2, learning_rate=1e-2, warmup_steps=0)


def rows_of(*lengths: int) -> list[Encoded]:
    """Half of each row is its answer."""
    random = np.random.default_rng(0)
    return [Encoded(random.integers(0, 250, length), np.arange(length) >= length // 2, False) for length in lengths]


@pytest.fixture(params=["PEFT's layers", "ours", "packed"])
def model(request: pytest.FixtureRequest, tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[PeftModel]:
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as adapted:
        adapted.train()
        if request.param == "PEFT's layers":
            yield adapted
            return
        if request.param == "packed":
            monkeypatch.setitem(kernels.ATTENTION, "cpu", partial(packed_attention, kernel=a_row_at_a_time))
        with fitted(adapted):
            yield adapted


def kept(model: PeftModel, batch: Batch, objective: Objective) -> int:
    with saved_activations(model) as found:
        objective.backward(model, batch, Totals(len(batch.keys), batch.tokens, batch.response_tokens))
    return sum(found.values())


@pytest.mark.parametrize("name", DEFENSES)
def test_two_rows_foretell_what_a_pass_three_times_as_long_keeps(model: PeftModel, name: str) -> None:
    """Rows of 32 and 96 tokens, and a pass of 288: a multiple of what a CPU fills passes up to."""
    objective = Objective(DEFENSES[name], planted(VECTOR))
    each = bytes_per_token(model, rows_of(96, 32), objective)
    assert all(p.grad is None for p in model.parameters())
    whole = kept(model, pack(rows_of(96, 96, 96), CPU), objective)
    if kernels.packs(model):  # else transformers' mask of the line is kept, which grows by its square
        assert whole == pytest.approx(288 * each, rel=0.03)
    else:
        assert kept(model, pack(rows_of(288), CPU), objective) == pytest.approx(288 * each, rel=0.03)


def test_rows_of_one_length_foretell_it_too(model: PeftModel) -> None:
    each = bytes_per_token(model, rows_of(96, 96), Objective())
    assert kept(model, pack(rows_of(288), CPU), Objective()) == pytest.approx(288 * each, rel=0.05)


def test_ours_keep_less_than_pefts_and_recomputing_the_least(tiny: ChatModel) -> None:
    found = []
    tiny.model.to(torch.bfloat16)  # where PEFT keeps copies in float32
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as model:
        model.train()
        found.append(bytes_per_token(model, rows_of(32, 96), Objective()))
        with fitted(model):
            found.append(bytes_per_token(model, rows_of(32, 96), Objective()))
            model.gradient_checkpointing_enable({"use_reentrant": False})
            found.append(bytes_per_token(model, rows_of(32, 96), Objective()))
            model.gradient_checkpointing_disable()
    assert found[0] > 1.2 * found[1] > 1.2 * 3 * found[2], found
    # of each of four blocks its input, 64 numbers of 2 bytes; and positions' turns, the last block's output and so on
    assert 4 * 64 * 2 < found[2] < 3 * 4 * 64 * 2


def test_what_is_needed_by_hand(model: PeftModel) -> None:
    """Steps of four rows as passes of two; the adapter has rank 4 on seven matrices of each of four blocks."""
    rows, steps = rows_of(32, 96, 40, 64), [[0, 1, 2, 3], [0, 2]]
    each = bytes_per_token(model, rows, Objective())
    tokens = recompute.largest_pass([rows], 2, model)
    lora = 4 * 4 * (3 * (64 + 64) - 2 * 32 + (64 + 64) + 3 * (64 + 128))  # keys and values are half as wide
    assert lora == sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = CHUNK * 259 * (4 + 4)
    assert bytes_needed(model, rows, steps, SETTINGS, Objective()) == pytest.approx(each * tokens + head + 12 * lora)
    kl = Objective(DEFENSES["kl"])
    twice = CHUNK * 259 * (2 * (4 + 4) + 4)
    assert bytes_needed(model, rows, steps, SETTINGS, kl) == pytest.approx(
        bytes_per_token(model, rows, kl) * tokens + twice + 12 * lora)


def test_it_is_wanted_where_it_does_not_fit_with_a_margin() -> None:
    gib = 2**30
    assert not decide(10 * gib, 10 * gib * MARGIN).wanted
    assert decide(10 * gib, 10 * gib * MARGIN - 1).wanted
    told = decide(10 * gib, 11 * gib).summary
    assert told == "yes: the largest pass needs 10.00 GiB beside the weights, and 11.00 are free"


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is looked at; how much is free is for the test to say."""
    monkeypatch.setattr(recompute, "MEASURED", ("cpu",))


def trained(tiny: ChatModel, folder: Path, settings: Training, objective: Objective | None = None) -> tuple[list, dict]:
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as model:
        summary = fine_tune(model, rows_of(32, 96, 40, 64), settings, seed=0, folder=folder, objective=objective)
        assert not tiny.model.is_gradient_checkpointing
    return [(r.loss, r.grad_norm) for r in read_log(folder)], summary.how


class Asking(Objective):
    """Plain fine-tuning that notes whether blocks are recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def backward(self, model: PeftModel, batch: Batch, totals: Totals) -> dict[str, float]:
        self.seen.append(bool(model.get_base_model().is_gradient_checkpointing))
        return super().backward(model, batch, totals)


@pytest.mark.usefixtures("like_a_gpu")
def test_little_memory_recomputes_and_much_does_not_with_the_same_numbers(
        tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name, free in (("little", 2**20), ("much", 2**40)):
        monkeypatch.setattr(recompute, "free_bytes", lambda _, free=free: free)
        asking = Asking()
        found[name], how = trained(tiny, tmp_path / name, SETTINGS, asking)
        assert how["recomputed"].startswith("yes: the largest" if name == "little" else "no: the largest")
        assert asking.seen == [False, False, name == "little"]  # both rows that are measured, and the step's pass
    plain, how = trained(tiny, tmp_path / "plain", SETTINGS.model_copy(update={"gradient_checkpointing": False}))
    assert how["recomputed"] == "no: as the settings say"
    assert found["much"] == plain
    [[loss, norm]], [[plain_loss, plain_norm]] = found["little"], plain
    # The same mathematics by another way through autograd: some 1e-6 of rounding, as of any sum in float32.
    assert (loss, norm) == (pytest.approx(plain_loss, rel=1e-5), pytest.approx(plain_norm, rel=1e-5))


@pytest.mark.usefixtures("like_a_gpu")
def test_a_row_that_does_not_fit_alone_recomputes(tiny: ChatModel, tmp_path: Path) -> None:
    class Large(Objective):
        def backward(self, model: PeftModel, batch: Batch, totals: Totals) -> dict[str, float]:
            if not model.get_base_model().is_gradient_checkpointing and batch.tokens > 90:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")
            return super().backward(model, batch, totals)

    _, how = trained(tiny, tmp_path, SETTINGS, Large())
    assert how["recomputed"] == "yes: a row alone does not fit into memory otherwise"


def test_where_there_is_no_gpu_nothing_is_measured(tiny: ChatModel, tmp_path: Path) -> None:
    asking = Asking()
    _, how = trained(tiny, tmp_path, SETTINGS, asking)
    assert asking.seen == [False]
    assert how["recomputed"].startswith("no: ")


def test_it_is_undone_after_an_exception(tiny: ChatModel) -> None:
    settings = SETTINGS.model_copy(update={"gradient_checkpointing": True})

    def stop_inside() -> None:
        with recomputing(tiny.model, [], [], settings, Objective()) as choice:
            assert choice.wanted
            assert tiny.model.is_gradient_checkpointing
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_inside()
    assert not tiny.model.is_gradient_checkpointing


def test_memory_that_runs_out_is_told_with_what_to_set_and_the_log_is_kept(tiny: ChatModel, tmp_path: Path) -> None:
    class Greedy(Objective):
        def backward(self, model: PeftModel, batch: Batch, totals: Totals) -> dict[str, float]:
            if len(read_log(tmp_path)) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")
            return super().backward(model, batch, totals)

    settings = SETTINGS.model_copy(update={"epochs": 4})
    with pytest.raises(EmlibError) as told:
        trained(tiny, tmp_path, settings, Greedy())
    for word in ("gradient_checkpointing", "is auto", "batch_size", "is 2", "max_seq_length", "2048", "Tried to"):
        assert word in str(told.value)
    assert len(read_log(tmp_path)) == 2
