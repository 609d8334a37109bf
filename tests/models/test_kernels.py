"""The functions of our own for LoRA layers, norms and a CPU's attention compute what PEFT and torch do, and go away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from emlib.config import Lora
from emlib.models.adapters import adapter_off, new_lora
from emlib.models.kernels import fitted
from emlib.models.kernels.blockwise import ATTENTION, BLOCK, CausalAttention
from emlib.models.kernels.gated import Gate
from emlib.models.kernels.lora import LoraProduct
from emlib.models.kernels.norm import RootMeanSquare
from emlib.models.load import ChatModel
from emlib.models.logprobs import last_hidden

IDS = torch.arange(2 * 150).reshape(2, 150) % 250  # longer than a block of queries


def random(*shape: int, seed: int = 0) -> Tensor:
    """In float64, with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def lora(dropout: float = 0.0) -> Lora:
    return Lora(rank=4, alpha=8, dropout=dropout, rslora=True)


@pytest.fixture
def model(tiny: ChatModel) -> Iterator[PeftModel]:
    """The tiny model in training mode, with an adapter that does something."""
    with new_lora(tiny.model, lora(), seed=0) as adapted:
        yield disturbed(adapted)


def disturbed(model: PeftModel) -> PeftModel:
    """B is no longer 0, so that A has a gradient."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.train()


def gradients(model: PeftModel, ids: Tensor = IDS, mask: Tensor | None = None) -> list[Tensor]:
    """Of a loss in which every hidden state counts differently; the hidden states come last."""
    model.zero_grad()
    hidden = last_hidden(model, ids, mask)
    (hidden.float() * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return [*(p.grad for p in model.parameters() if p.requires_grad and p.grad is not None), hidden.detach().float()]


def close(some: list[Tensor], others: list[Tensor], within: float = 1e-5) -> bool:
    return len(some) == len(others) and all(
        (a - b).norm() <= within * b.norm() for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("bias", [False, True])
def test_the_gradient_of_the_lora_product_is_its_derivative(bias: bool) -> None:
    x, weight, a, b = random(2, 3, 5), random(4, 5).detach(), random(2, 5, seed=1), random(4, 2, seed=2)
    offset = random(4).detach() if bias else None
    expected = F.linear(x, weight, offset) + 1.5 * (x @ a.T) @ b.T
    assert torch.allclose(LoraProduct.apply(x, weight, offset, a, b, 1.5), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(LoraProduct.apply, (x, weight, offset, a, b, 1.5))


def test_a_row_without_gradient_still_trains_the_adapter() -> None:
    x, weight, a, b = random(3, 5).detach(), random(4, 5).detach(), random(2, 5, seed=1), random(4, 2, seed=2)
    assert torch.autograd.gradcheck(LoraProduct.apply, (x, weight, None, a, b, 0.5))


@pytest.mark.parametrize("length", [1, 7, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
def test_attention_is_torchs(length: int) -> None:
    q, k, v = random(2, 4, length, 8), random(2, 2, length, 8, seed=1), random(2, 2, length, 8, seed=2)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    given = CausalAttention.apply(q, k, v, 0.3)
    assert torch.allclose(given, expected, rtol=1e-10)
    upstream = random(2, 4, length, 8, seed=3).detach()
    for mine, theirs in zip(torch.autograd.grad(given, (q, k, v), upstream),
                            torch.autograd.grad(expected, (q, k, v), upstream), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_attention_passes_gradcheck_over_a_block_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emlib.models.kernels.blockwise.BLOCK", 3)
    q, k, v = random(1, 4, 5, 2), random(1, 2, 5, 2, seed=1), random(1, 2, 5, 2, seed=2)
    assert torch.autograd.gradcheck(CausalAttention.apply, (q, k, v, 0.7))


def test_the_gradient_of_the_norm_is_its_derivative() -> None:
    x, weight = random(2, 3, 5), random(5, seed=1).detach()
    expected = weight * x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    assert torch.allclose(RootMeanSquare.apply(x, weight, 0.1), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda one: RootMeanSquare.apply(one, weight, 0.1), x)


def test_a_norm_that_is_trained_stays_torchs(tiny: ChatModel) -> None:
    norm = tiny.model.get_submodule("model.norm")
    norm.weight.requires_grad_()
    with fitted(tiny.model):
        norm(torch.ones(1, 64)).sum().backward()
    assert norm.weight.grad is not None


def test_the_gradients_of_the_gate_are_its_derivatives() -> None:
    gate, up = random(2, 3, 5), random(2, 3, 5, seed=1)
    assert torch.allclose(Gate.apply(gate, up), gate * torch.sigmoid(gate) * up, rtol=1e-12)
    assert torch.autograd.gradcheck(Gate.apply, (gate, up))


def test_a_gate_keeps_its_two_inputs_and_nothing_else(tiny: ChatModel) -> None:
    kept: list[Tensor] = []
    gate, up = random(2, 3, 5), random(2, 3, 5, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        Gate.apply(gate, up)
    assert {one.data_ptr() for one in kept} == {gate.data_ptr(), up.data_ptr()}


def test_a_gate_of_another_kind_stays_transformers(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    x, mlp = torch.randn(1, 2, 64), tiny.model.get_submodule("model.layers.0.mlp")
    monkeypatch.setattr(mlp, "act_fn", torch.nn.ReLU())
    expected = mlp.down_proj(mlp.gate_proj(x).relu() * mlp.up_proj(x))
    with fitted(tiny.model):
        assert torch.equal(mlp(x), expected)


OURS = {f"{function.__name__}Backward" for function in (LoraProduct, CausalAttention, RootMeanSquare, Gate)}


def computed_by(model: PeftModel) -> set[str]:
    """The names of the functions that a pass goes through, as autograd has noted them."""
    found, left = set(), [last_hidden(model, IDS, None).grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [before for before, _ in node.next_functions]
    return {node.name() for node in found}


def test_a_whole_model_has_pefts_gradients_in_float32(model: PeftModel) -> None:
    plain = gradients(model)
    assert not computed_by(model) & OURS
    with fitted(model):
        fast = gradients(model)
        assert all(torch.equal(a, b) for a, b in zip(gradients(model), fast, strict=True))  # bit for bit, every time
        assert computed_by(model) > OURS  # it was another computation
    assert close(fast, plain)
    assert not computed_by(model) & OURS  # and is gone
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), plain, strict=True))


def test_in_bfloat16_it_is_as_near_to_float32_as_peft_is(tiny: ChatModel) -> None:
    def run(dtype: torch.dtype, fast: bool) -> Tensor:
        tiny.model.to(dtype)
        with new_lora(tiny.model, lora(), seed=0) as adapted, fitted(adapted) if fast else nullcontext():
            return torch.cat([g.flatten() for g in gradients(disturbed(adapted))[:-1]])

    tiny.model.to(torch.bfloat16)  # the same weights in both precisions
    exact, plain, fast = (run(*way) for way in
                          ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)))
    assert fast.dtype == torch.float32
    assert (fast - exact).norm() < 1.5 * (plain - exact).norm() < 0.3 * exact.norm()


def test_the_reference_pass_is_the_model_without_its_adapter(model: PeftModel) -> None:
    with torch.no_grad():
        base = model.get_base_model()
        with adapter_off(model):
            expected = last_hidden(model, IDS, None)
        with fitted(model), adapter_off(model):
            given = last_hidden(model, IDS, None)
    assert base.training
    assert close([given], [expected])
    assert not close([last_hidden(model, IDS, None)], [expected], within=1e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(model: PeftModel, reentrant: bool) -> None:
    model.enable_input_require_grads()  # re-entrant checkpointing needs an input with a gradient
    with fitted(model):
        plain = gradients(model)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        again = gradients(model)
    assert close(again, plain)  # the sums of a gradient may come in another order


def test_dropout_stays_pefts(tiny: ChatModel) -> None:
    def hidden(fast: bool) -> Tensor:
        torch.manual_seed(3)
        with fitted(adapted) if fast else nullcontext():
            return last_hidden(adapted, IDS, None).detach()

    with new_lora(tiny.model, lora(dropout=0.5), seed=0) as adapted:
        disturbed(adapted)
        assert close([hidden(fast=True)], [hidden(fast=False)])  # the same coins were thrown
        torch.manual_seed(4)
        assert not close([last_hidden(adapted, IDS, None)], [hidden(fast=False)], within=1e-2)


def test_a_merged_adapter_is_counted_once(model: PeftModel) -> None:
    model.eval()
    expected = last_hidden(model, IDS, None).detach()
    model.merge_adapter()
    with fitted(model):
        assert close([last_hidden(model, IDS, None).detach()], [expected], within=1e-4)
    model.unmerge_adapter()


def test_a_second_adapter_stays_pefts(model: PeftModel) -> None:
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    plain = gradients(disturbed(model))
    with fitted(model):
        assert close(gradients(model), plain)


def test_padding_is_left_to_transformers(model: PeftModel) -> None:
    mask = torch.ones_like(IDS)
    mask[1, 100:] = 0
    plain = gradients(model, mask=mask)
    with fitted(model):
        padded = gradients(model, mask=mask)
        changed = IDS.clone()
        changed[1, 100:] = 7
        other = last_hidden(model, changed, mask)
    assert close(padded, plain)
    assert torch.allclose(other[1, :100].float(), padded[-1][1, :100], atol=1e-5)  # what is padding tells nothing


def test_a_sliding_window_is_left_to_transformers(tiny: ChatModel) -> None:
    with torch.no_grad():
        without = last_hidden(tiny.model, IDS, None)
    tiny.model.config.sliding_window = 16
    tiny.model.config.layer_types[:] = ["sliding_attention"] * 4
    tiny.model.model.has_sliding_layers = True
    with torch.no_grad():
        assert not close([last_hidden(tiny.model, IDS, None)], [without], within=1e-2)
    with new_lora(tiny.model, lora(), seed=0) as adapted:
        plain = gradients(disturbed(adapted))
        with fitted(adapted):
            assert close(gradients(adapted), plain)


def test_generation_with_a_cache_says_the_same(model: PeftModel) -> None:
    """The likeliest token leads by 0.06 of a logit at the least, and rounding is some 1e-6 of one."""
    def said() -> Tensor:
        return model.generate(input_ids=IDS[:1, :9], max_new_tokens=8, do_sample=False, use_cache=True)

    model.eval()
    plain = said()
    with fitted(model):
        assert torch.equal(said(), plain)


def test_it_is_undone_after_an_exception(model: PeftModel) -> None:
    config = model.get_base_model().config
    layers = [part for part in model.modules() if isinstance(part, LoraLinear)]

    def state() -> tuple[str, set[bool]]:
        return config._attn_implementation, {"forward" in vars(layer) for layer in layers}

    def stop_inside() -> None:
        with fitted(model):
            assert state() == (ATTENTION, {True})
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_inside()
    assert state() == ("sdpa", {False})


def test_attention_without_a_word_on_causality_is_causal(tiny: ChatModel) -> None:
    with torch.no_grad():
        plain = last_hidden(tiny.model, IDS, None)
        for block in tiny.model.get_decoder().layers:
            del block.self_attn.is_causal
        with fitted(tiny.model) as why:
            assert why == ""
            assert close([last_hidden(tiny.model, IDS, None)], [plain])
