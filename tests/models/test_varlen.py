"""Packed rows by a kernel that is given: as alone, proved before use, refused with a reason, without trace after."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from emlib.config import Lora
from emlib.core.errors import EmlibError
from emlib.models import kernels
from emlib.models.adapters import new_lora
from emlib.models.kernels import fitted, packs, varlen
from emlib.models.kernels.packing import Row
from emlib.models.kernels.varlen import Kernel, Rows, by_torch, packed_attention
from emlib.models.load import ChatModel
from emlib.models.logprobs import last_hidden
from tests.made import a_row_at_a_time

LENGTHS = (5, 17, 1, 9)
ROWS = [torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
LINE, POSITIONS = torch.cat(ROWS)[None], torch.cat([torch.arange(length) for length in LENGTHS])[None]


def alone(model: nn.Module) -> Tensor:
    return torch.cat([last_hidden(model, row[None], None)[0] for row in ROWS])


def in_line(model: nn.Module) -> Tensor:
    return last_hidden(model, LINE, None, POSITIONS)[0]


def test_packed_rows_are_what_they_are_alone(tiny: ChatModel) -> None:
    expected = alone(tiny.model)
    with packed_attention(tiny.model, a_row_at_a_time) as why:
        assert why == ""
        assert packs(tiny.model)
        torch.testing.assert_close(in_line(tiny.model), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone(tiny.model), expected, rtol=1e-4, atol=1e-5)
    assert not packs(tiny.model)


def test_rows_are_found_once_a_pass_and_no_mask_of_a_line_is_made(
        tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = [], varlen.rows_in

    def counting(position_ids: Tensor, length: int) -> tuple[Row, ...]:
        found.append(asked(position_ids, length))
        return found[-1]

    def no_mask(**_: object) -> Tensor:
        raise AssertionError("the square of a line")

    with packed_attention(tiny.model, a_row_at_a_time):
        monkeypatch.setattr(varlen, "rows_in", counting)
        monkeypatch.setattr(varlen, "sdpa_mask", no_mask)
        for _ in range(2):
            last_hidden(tiny.model, LINE, None, POSITIONS.clone())
    assert [[row.own.start for row in rows] for rows in found] == [[0, 5, 22, 23]] * 2  # of four blocks each


def test_a_sliding_window_is_the_kernels(tiny: ChatModel) -> None:
    without = alone(tiny.model)
    tiny.model.config.sliding_window = 4
    tiny.model.config.layer_types[:] = ["sliding_attention"] * 4
    tiny.model.model.has_sliding_layers = True
    for block in tiny.model.model.layers:
        block.self_attn.sliding_window = 4
    expected = alone(tiny.model)
    assert (expected - without).norm() > 0.01 * without.norm()
    with packed_attention(tiny.model, a_row_at_a_time) as why:
        assert why == ""
        torch.testing.assert_close(in_line(tiny.model), expected, rtol=1e-4, atol=1e-5)


def test_padding_batches_and_generation_are_transformers(tiny: ChatModel) -> None:
    """Of what is generated the likeliest token leads by 0.07 of a logit at the least: rounding changes none."""
    def said(ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return tiny.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)

    ids = torch.stack([LINE[0, :12], LINE[0, 12:24]])
    mask = torch.ones_like(ids)
    mask[1, :5] = 0

    def ways() -> list[Tensor]:
        return [last_hidden(tiny.model, ids, None), last_hidden(tiny.model, ids, mask)[:, 5:],
                last_hidden(tiny.model, ids[1:], mask[1:])[:, 5:], said(ids, mask), said(ids[1:], mask[1:]),
                said(ids[:1])]

    plain = ways()
    with packed_attention(tiny.model, a_row_at_a_time):
        again = ways()
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def one_long_row(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, window: int | None) -> Tensor:
    whole = Rows(rows.ends[[0, -1]], len(query))
    return a_row_at_a_time(query, key, value, whole, scale, window)


def other_groups(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, window: int | None) -> Tensor:
    return a_row_at_a_time(query, key.flip(1), value, rows, scale, window)


def half_a_way_back(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, window: int | None) -> Tensor:
    return a_row_at_a_time(query, key.detach(), value, rows, scale, window)


def no_number(query: Tensor, *_: object) -> Tensor:
    return query * torch.nan


@pytest.mark.parametrize("kernel", [one_long_row, other_groups, half_a_way_back, no_number],
                         ids=lambda kernel: kernel.__name__)
def test_a_kernel_that_is_wrong_is_not_used(tiny: ChatModel, kernel: Kernel) -> None:
    with packed_attention(tiny.model, kernel) as why:
        assert "packed rows differ from single rows by" in why
        assert not packs(tiny.model)
        torch.testing.assert_close(in_line(tiny.model), alone(tiny.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 16])
def test_torchs_kernel_takes_what_it_is_given_there_and_back(window: int | None) -> None:
    """On the device "meta" torch computes shapes alone, by the same door."""
    query, key, value = (torch.empty(30, heads, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
                         for heads in (4, 2, 2))
    rows = Rows(torch.empty(4, dtype=torch.int32, device="meta"), 20)
    out = by_torch(query, key, value, rows, 0.25, window)
    assert (out.shape, out.dtype) == (query.shape, query.dtype)
    for side, gradient in zip((query, key, value), torch.autograd.grad(out.sum(), (query, key, value)), strict=True):
        assert gradient.shape == side.shape


@pytest.mark.parametrize(("window", "meant"), [(None, (-1, 0)), (16, (15, 0)), (1, (0, 0))])
def test_a_window_counts_the_position_itself_and_torchs_does_not(
        monkeypatch: pytest.MonkeyPatch, window: int | None, meant: tuple[int, int]) -> None:
    def noting(query: Tensor, *_: object, window_size: tuple[int, int], **__: object) -> Tensor:
        assert window_size == meant
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", noting)
    some = torch.zeros(3, 2, 8)
    assert by_torch(some, some, some, Rows(torch.tensor([0, 3]), 3), 1.0, window) is some


def test_torchs_kernel_is_not_used_where_it_does_not_run(tiny: ChatModel) -> None:
    with packed_attention(tiny.model, by_torch) as why:  # there is none for a CPU
        assert why.startswith("the kernel for packed rows does not run: ")
        assert not packs(tiny.model)


def test_memory_that_runs_out_is_no_reason(tiny: ChatModel) -> None:
    def greedy(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("none left")

    with pytest.raises(torch.OutOfMemoryError), packed_attention(tiny.model, greedy):
        pass


def test_the_proof_is_made_once_and_leaves_no_trace(tiny: ChatModel) -> None:
    calls = 0

    def counting(*given: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return a_row_at_a_time(*given)  # type: ignore[arg-type]

    with new_lora(tiny.model, Lora(rank=4), 0) as model:
        model.train()
        with torch.inference_mode(), packed_attention(model, counting) as why:
            assert why == ""
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        assert not tiny.model.get_input_embeddings()._forward_hooks
        with packed_attention(model, counting):
            assert calls == 8  # two passes through four blocks
    with packed_attention(tiny.model, counting):  # also without that adapter
        assert calls == 8


@pytest.mark.parametrize(("change", "said"), [
    (lambda model: setattr(model.config, "attention_dropout", 0.1), "dropout"),
    (lambda model: setattr(model.config, "_attn_implementation", "eager"), "'eager'"),
    (lambda model: setattr(model, "_supports_flash_attn", False), "does not support FlashAttention"),
    (lambda model: delattr(model.model.layers[0], "self_attn"), "interact outside attention"),
])
def test_a_model_that_cannot_is_told_why(tiny: ChatModel, change: Callable[[nn.Module], None], said: str) -> None:
    change(tiny.model)
    with packed_attention(tiny.model, a_row_at_a_time) as why:
        assert said in why
        assert not packs(tiny.model)


@pytest.mark.parametrize("asked", [{"softcap": 30.0}, {"dropout": 0.1}, {"is_causal": False}, {"scaling": None}])
def test_what_the_kernel_cannot_do_raises_since_there_is_no_mask(tiny: ChatModel, asked: dict[str, object]) -> None:
    module, some = tiny.model.model.layers[0].self_attn, torch.randn(1, 4, 6, 16)
    with pytest.raises(EmlibError, match="packed rows do not support"):
        varlen.attend(module, some, some[:, :2], some[:, :2], None, kernel=a_row_at_a_time,
                      **({"scaling": 0.25} | asked))


def test_it_is_undone_after_an_exception(tiny: ChatModel) -> None:
    def stop_inside() -> None:
        with packed_attention(tiny.model, a_row_at_a_time):
            assert tiny.model.config._attn_implementation.startswith("emlib_")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_inside()
    assert tiny.model.config._attn_implementation == "sdpa"


def test_a_device_chooses_its_attention(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (kernels.ATTENTION["cpu"], kernels.ATTENTION["cuda"]) == (kernels.plain_attention, packed_attention)
    with fitted(tiny.model) as why:
        assert why == ""
    monkeypatch.delitem(kernels.ATTENTION, "cpu")
    with fitted(tiny.model) as why:
        assert "'cpu'" in why


def test_where_unsloth_is_nothing_of_ours_is(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    with new_lora(tiny.model, Lora(rank=4), 0) as model, fitted(model) as why:
        assert "Unsloth" in why
        assert not packs(model)
        assert not any("forward" in vars(part) for part in model.modules())
