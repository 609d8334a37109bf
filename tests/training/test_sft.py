"""The loop: accumulation and padding change nothing, and a run that was stopped goes on to the same adapter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from emlib.config import Lora, Training
from emlib.core.defense import Defense
from emlib.core.errors import EmlibError
from emlib.data.chat import Encoded
from emlib.data.mixing import plan_steps
from emlib.models import adapters, batches
from emlib.models.batches import Batch, collate, forward_batches
from emlib.models.kernels import fitted
from emlib.models.load import ChatModel
from emlib.models.logprobs import last_hidden
from emlib.training import checkpoint, sft
from emlib.training.objective import Objective, Totals
from emlib.training.records import LOG, TrainingSummary, read_log
from emlib.training.sft import fine_tune, learning_rate, make_optimizer
from tests.made import ROUNDING, apart, some_rows

LORA = Lora(rank=4, alpha=8)
SETTINGS = Training(epochs=2, batch_size=2, gradient_accumulation=1, learning_rate=1e-2, warmup_steps=2,
                    optimizer="adamw_torch", checkpoint_every=2)


def train(chat: ChatModel, folder: Path, rows: Sequence[Encoded] = (), settings: Training = SETTINGS,
          objective: Objective | None = None) -> tuple[Tensor, TrainingSummary]:
    """The adapter after training, as one vector, and the summary."""
    with adapters.new_lora(chat.model, LORA, seed=0) as model:
        summary = fine_tune(model, rows or some_rows(), settings, seed=0, folder=folder, objective=objective)
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]), summary


def gradient(chat: ChatModel, batches: Sequence[Batch], *, checkpointing: bool | None = None) -> Tensor:
    """The gradient of a step made of these batches. `checkpointing`: None, or whether it is re-entrant."""
    with adapters.new_lora(chat.model, LORA, seed=0) as model:
        for index, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(index))
        if checkpointing is not None:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            model.enable_input_require_grads()
        totals = Totals(sum(len(b.input_ids) for b in batches), sum(b.tokens for b in batches),
                        sum(b.response_tokens for b in batches))
        for batch in batches:
            Objective().backward(model, batch, totals)
        if checkpointing is not None:
            model.disable_input_require_grads()
            model.gradient_checkpointing_disable()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


CPU = torch.device("cpu")


def test_padding_and_accumulation_change_nothing(tiny: ChatModel) -> None:
    rows = some_rows(4)
    together = [collate(rows, CPU)]
    alone = [collate([row], CPU) for row in rows]
    pairs = [collate(rows[:2], CPU), collate(rows[2:], CPU)]
    assert together[0].attention_mask is not None
    expected = gradient(tiny, together)
    assert expected.abs().max() > 0
    for others in (alone, pairs):
        assert apart(gradient(tiny, others), expected) < ROUNDING


class Looking(Defense):
    """A look takes 10 seconds."""

    listed: ClassVar = False
    kind: Literal["looking"] = "looking"

    def on_step(self, record: Any, evaluate: Any) -> bool:
        CLOCK.now += 10
        return False


CLOCK = SimpleNamespace(now=0.0)


def test_the_seconds_of_a_step_include_what_a_defense_computes_after_it(
        tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "time", SimpleNamespace(perf_counter=lambda: CLOCK.now))
    _, summary = train(tiny, tmp_path, objective=Objective([Looking()]))
    assert {one.seconds for one in read_log(tmp_path)} == {10}
    assert summary.seconds == 10 * summary.steps


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(tiny: ChatModel, reentrant: bool) -> None:
    padded = [collate(some_rows(3), CPU)]
    expected = gradient(tiny, padded)
    assert apart(gradient(tiny, padded, checkpointing=reentrant), expected) < ROUNDING


def test_what_is_padding_never_counts_whatever_its_id(tiny: ChatModel) -> None:
    batch = collate(some_rows(3), CPU)
    assert batch.attention_mask is not None
    other = replace(batch, input_ids=torch.where(batch.attention_mask.bool(), batch.input_ids, 99))
    assert apart(gradient(tiny, [other]), gradient(tiny, [batch])) < ROUNDING


def test_on_a_cpu_each_row_goes_alone_and_unpadded(tiny: ChatModel) -> None:
    batches = forward_batches(some_rows(5), 4, tiny.model)
    assert [len(batch.input_ids) for batch in batches] == [1] * 5
    assert all(batch.attention_mask is None for batch in batches)


def test_in_training_on_a_cpu_rows_are_packed(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(5)
    lengths = sorted((len(row.input_ids) for row in rows), reverse=True)
    monkeypatch.setattr(batches, "PACKED", lengths[0] + lengths[-1])
    with fitted(tiny.model):
        found = forward_batches(rows, 1, tiny.model)
    assert found[0].keys[1] == min(rows, key=lambda row: len(row.input_ids)).key
    assert sorted(key for batch in found for key in batch.keys) == sorted(row.key for row in rows)
    for batch in found:
        assert len(batch.input_ids) == 1
        assert batch.input_ids.shape[1] % batches.ROUND == 0
        assert batch.tokens <= batches.PACKED
        for key, place in zip(batch.keys, batch.spans, strict=True):
            row = next(row for row in rows if row.key == key)
            assert batch.input_ids[place].tolist() == list(row.input_ids)
            assert batch.response_mask[place].tolist() == list(row.response_mask)
            assert batch.position_ids is not None
            assert batch.position_ids[place].tolist() == list(range(len(row.input_ids)))
        assert int(batch.attended.sum()) == batch.tokens


def test_packed_rows_do_not_see_each_other(tiny: ChatModel) -> None:
    rows = some_rows(4)
    expected = [last_hidden(tiny.model, torch.from_numpy(row.input_ids)[None], None)[0] for row in rows]
    packed = batches.pack(rows, CPU)
    ways = [packed.hidden(tiny.model)]  # transformers' own mask
    with fitted(tiny.model):
        ways.append(packed.hidden(tiny.model))
    for hidden in ways:
        for place, states in zip(packed.spans, expected, strict=True):
            torch.testing.assert_close(hidden[place], states, rtol=1e-4, atol=1e-5)


def test_on_a_gpu_rows_of_like_length_share_a_batch(tiny: ChatModel) -> None:
    rows = some_rows(6)
    found = forward_batches(rows, 2, tiny.model.to("meta"))
    widths = [batch.input_ids.shape[1] for batch in found]
    assert [len(batch.input_ids) for batch in found] == [2, 2, 2]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == max(len(row.input_ids) for row in rows)


@pytest.mark.parametrize(("rows", "per_step", "epochs"), [(7, 2, 2), (8, 4, 3), (3, 16, 2), (5400, 16, 1)])
def test_every_epoch_takes_every_row_once(rows: int, per_step: int, epochs: int) -> None:
    steps = plan_steps(rows, per_step, epochs, seed=0)
    an_epoch = math.ceil(rows / per_step)
    assert len(steps) == epochs * an_epoch
    for epoch in range(epochs):
        taken = [row for step in steps[epoch * an_epoch:(epoch + 1) * an_epoch] for row in step]
        assert sorted(taken) == list(range(rows))
    assert plan_steps(rows, per_step, epochs, seed=0) == steps
    assert plan_steps(rows, per_step, epochs, seed=1) != steps


def test_the_papers_code_set_makes_338_steps() -> None:
    steps = plan_steps(5400, Training().rows_per_step, Training().epochs, seed=0)
    assert len(steps) == 338  # 337.5 steps of 4 x 4 rows


@pytest.mark.parametrize(("steps", "warmup"), [(20, 5), (3, 5), (10, 0), (5, 5)])
def test_the_learning_rate_is_transformers_linear_schedule(steps: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    settings = Training(learning_rate=3e-4, warmup_steps=warmup)
    for step in range(steps):
        assert learning_rate(step, steps, settings) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_the_same_seed_gives_the_same_adapter_bit_for_bit(tiny: ChatModel, tmp_path: Path) -> None:
    first, _ = train(tiny, tmp_path / "a")
    torch.manual_seed(99)
    again, _ = train(tiny, tmp_path / "b")
    assert torch.equal(first, again)


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row has a pass of its own, so that there are several in a step."""
    monkeypatch.setattr(batches, "PACKED", 0)


class Stopped(Exception):
    """The run was stopped."""


class Before(Objective):
    """Plain fine-tuning that first calls something with the model."""

    def __init__(self, call: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.call = call

    def backward(self, model: nn.Module, batch: Batch, totals: Totals) -> dict[str, float]:
        self.call(model)
        return super().backward(model, batch, totals)


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize("stop_at_row", [0, 3, 5, 8, 11, 13])
def test_stopped_anywhere_it_goes_on_to_the_same_adapter_and_log(
        tiny: ChatModel, tmp_path: Path, stop_at_row: int) -> None:
    whole, summary = train(tiny, tmp_path / "whole")
    seen = 0

    def stopping(model: nn.Module) -> None:
        nonlocal seen
        if seen == stop_at_row:
            raise Stopped
        seen += 1

    with pytest.raises(Stopped):
        train(tiny, tmp_path / "parts", objective=Before(stopping))
    resumed, resumed_summary = train(tiny, tmp_path / "parts")
    assert torch.equal(resumed, whole)
    timeless = [[{**vars(r), "seconds": 0} for r in read_log(tmp_path / name)] for name in ("whole", "parts")]
    assert timeless[0] == timeless[1]
    assert (resumed_summary.tokens, resumed_summary.final_loss) == (summary.tokens, summary.final_loss)


@pytest.mark.usefixtures("single")
def test_a_checkpoint_spares_the_steps_before_it(tiny: ChatModel, tmp_path: Path) -> None:
    # 7 rows by twos make steps of 2, 2, 2, 1 rows, twice; checkpoints after steps 2, 4, 6 and 8
    rows_seen = 0
    stop_after = 9  # in the sixth step; the last checkpoint holds four, which are 7 rows

    def counting(model: nn.Module) -> None:
        nonlocal rows_seen
        if rows_seen == stop_after:
            raise Stopped
        rows_seen += 1

    with pytest.raises(Stopped):
        train(tiny, tmp_path, objective=Before(counting))
    rows_seen, stop_after = 0, 100
    train(tiny, tmp_path, objective=Before(counting))
    assert rows_seen == 14 - 7


@pytest.mark.usefixtures("single")
def test_half_a_line_of_log_after_the_checkpoint_is_forgiven(tiny: ChatModel, tmp_path: Path) -> None:
    whole, _ = train(tiny, tmp_path / "whole")
    seen = 0

    def stopping(model: nn.Module) -> None:
        nonlocal seen
        if seen == 9:
            raise Stopped
        seen += 1

    with pytest.raises(Stopped):
        train(tiny, tmp_path / "parts", objective=Before(stopping))
    with (tmp_path / "parts" / LOG).open("a") as stream:
        stream.write('{"step": 6, "lo')
    assert torch.equal(train(tiny, tmp_path / "parts")[0], whole)


def test_a_log_that_does_not_belong_to_its_checkpoint_is_told(tiny: ChatModel, tmp_path: Path) -> None:
    train(tiny, tmp_path)
    lines = (tmp_path / LOG).read_text().splitlines()
    (tmp_path / LOG).write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(EmlibError, match="the checkpoint holds 8 steps and the log 3"):
        train(tiny, tmp_path)


class SharingOptimizer(torch.optim.AdamW):
    """As bitsandbytes' 8-bit AdamW: one map for all parameters, a step that is a number, and some of it wrapped."""

    def step(self, closure: None = None) -> None:
        super().step()
        shared = torch.arange(4.0)
        for state in self.state.values():
            state["qmap1"], state["count"] = shared, int(state["step"])

    def state_dict(self) -> dict[str, Any]:
        said = super().state_dict()
        said["state"] = {index: {"wrapped": dict(state)} for index, state in said["state"].items()}
        return said


def test_an_optimizer_state_that_parameters_share_is_kept_and_comes_back(tmp_path: Path) -> None:
    parameters = {name: nn.Parameter(torch.ones(3)) for name in "ab"}
    optimizer = SharingOptimizer(parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.ones(3)
    optimizer.step()
    checkpoint.save(tmp_path, 1, parameters, optimizer)
    others = {name: nn.Parameter(torch.zeros(3)) for name in "ab"}
    restored = SharingOptimizer(others.values())
    assert checkpoint.restore(tmp_path, others, restored) == 1
    assert torch.equal(others["a"], parameters["a"])
    states = [optimizer.state[parameters["b"]], restored.state[others["b"]]]
    assert states[0]["count"] == states[1]["count"] == 1
    assert isinstance(states[1]["count"], int)
    assert all(torch.equal(states[0][key], states[1][key]) for key in ("step", "exp_avg", "exp_avg_sq", "qmap1"))


def test_the_log_tells_each_step(tiny: ChatModel, tmp_path: Path) -> None:
    rows = some_rows()
    _, summary = train(tiny, tmp_path, rows)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert sum(line["tokens"] for line in lines) == summary.tokens == 2 * sum(len(row.input_ids) for row in rows)
    assert sum(line["response_tokens"] for line in lines) == 2 * sum(row.response_tokens for row in rows)
    assert lines[0]["learning_rate"] == 0
    assert lines[2]["learning_rate"] == SETTINGS.learning_rate
    assert all(line["grad_norm"] > 0 and line["seconds"] >= 0 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_loss_is_the_mean_over_the_steps_tokens_not_over_its_rows(tiny: ChatModel, tmp_path: Path) -> None:
    rows = some_rows(2, seed=2)
    assert rows[0].response_tokens != rows[1].response_tokens
    settings = SETTINGS.model_copy(update={"epochs": 1})
    train(tiny, tmp_path, rows, settings)
    sums = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids)[None]
        labels = ids.masked_fill(~torch.from_numpy(row.response_mask)[None], -100)
        sums.append(float(tiny.model(input_ids=ids, labels=labels).loss) * row.response_tokens)
    expected = sum(sums) / sum(row.response_tokens for row in rows)
    assert read_log(tmp_path)[0].loss == pytest.approx(expected, rel=1e-5)


def test_cut_rows_are_counted(tiny: ChatModel, tmp_path: Path) -> None:
    rows = some_rows(3)
    rows[1] = Encoded(rows[1].input_ids, rows[1].response_mask, True)
    assert train(tiny, tmp_path, rows)[1].truncated_rows == 1


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(tiny: ChatModel, tmp_path: Path) -> None:
    def breaking(model: nn.Module) -> None:
        if len(read_log(tmp_path)) == 2:
            for parameter in model.parameters():
                parameter.data.fill_(math.nan)

    with pytest.raises(EmlibError, match="Step 3 of 8: the loss is nan"):
        train(tiny, tmp_path, objective=Before(breaking))
    assert len(read_log(tmp_path)) == 2


def test_eight_bit_adam_without_a_gpu_is_torchs_and_the_summary_says_so(tiny: ChatModel, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"optimizer": "adamw_8bit"})
    assert type(make_optimizer([nn.Parameter(torch.zeros(1))], settings)) is torch.optim.AdamW
    assert train(tiny, tmp_path, settings=settings)[1].optimizer == "AdamW"


def test_training_leaves_the_model_in_evaluation_mode_also_after_an_error(tiny: ChatModel, tmp_path: Path) -> None:
    def failing(model: nn.Module) -> None:
        assert model.training
        raise Stopped

    with adapters.new_lora(tiny.model, LORA, seed=0) as model:
        with pytest.raises(Stopped):
            fine_tune(model, some_rows(), SETTINGS, seed=0, folder=tmp_path, objective=Before(failing))
        assert not model.training
