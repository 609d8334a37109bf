"""The compiled head: the gradient step by step to its rounding; told and passed over where it fails or cannot gain."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from emlib.models.load import ChatModel
from emlib.training import fused, head
from emlib.training.fused import COMPILED, choose_step, fault, written_over
from emlib.training.head import IGNORED, head_method, head_terms, step_by_step

WORDS = 530


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    yield
    fault.cache_clear()


def logits(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Of two models, with targets and weights; some tokens have no target."""
    made = torch.Generator().manual_seed(tokens)
    weights = torch.rand(tokens, 1, generator=made) * (torch.arange(tokens)[:, None] % 3 > 0)
    return ((3 * torch.randn(2, tokens, WORDS, generator=made)).to(dtype),
            torch.randint(0, WORDS, (tokens, 1), generator=made), weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_formulas_are_those_of_the_steps(dtype: torch.dtype) -> None:
    for tokens, kl_weight in ((5, 0.3), (40, 0.0), (1, 2.0)):
        ours, targets, weights = logits(tokens, dtype)
        theirs = ours.clone()
        said = written_over(ours, targets, weights, torch.tensor(kl_weight))
        torch.testing.assert_close(said, step_by_step(theirs, targets, weights, kl_weight), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours[0], theirs[0])  # the steps write over both sides


@pytest.mark.slow
@pytest.mark.skipif(" " in sys.prefix, reason="torch splits its headers' paths at spaces, so that nothing compiles")
def test_compiled_it_gives_the_same_for_lengths_and_weights_that_change() -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    for dtype in (torch.float32, torch.bfloat16):
        assert fault(torch.device("cpu"), dtype, WORDS, step_by_step) == ""
        for tokens, kl_weight in ((12, 0.3), (50, 0.07), (3, 1.0)):
            ours, targets, weights = logits(tokens, dtype)
            theirs = ours.clone()
            said = fused.compiled()(ours, targets, weights, kl_weight)
            torch.testing.assert_close(said, step_by_step(theirs, targets, weights, kl_weight), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ours[0], theirs[0])


def test_a_compiled_form_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.13's is of the steps themselves, where a weight that changes stays at its first value."""
    monkeypatch.setattr(fused, "compiled", lambda: lambda *given: step_by_step(*given[:3], 0.25))
    assert "of its norm from the one step by step" in fault(torch.device("cpu"), torch.float32, 60, step_by_step)


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Tensor:
        raise RuntimeError("Failed to find a C compiler.\nPlease install one.")

    monkeypatch.setattr(fused, "compiled", lambda: failing)
    found = fault(torch.device("cpu"), torch.float32, 60, step_by_step)
    assert found == "it does not compile: RuntimeError: Failed to find a C compiler."


def test_only_for_two_models_on_a_gpu_is_anything_compiled(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = torch.empty(0, device="meta")
    monkeypatch.setattr(fused, "DEVICES", ("meta",))
    monkeypatch.setattr(fused, "fault", lambda *_: "")
    assert choose_step(1, on_gpu, WORDS, step_by_step) == (step_by_step, "step by step")
    assert choose_step(2, torch.empty(0), WORDS, step_by_step) == (step_by_step, "step by step")
    assert choose_step(2, on_gpu, WORDS, step_by_step)[1] == COMPILED
    assert head_method(tiny.model, kl=True) == "step by step"
    monkeypatch.setattr(fused, "fault", lambda *_: "it does not compile")
    assert choose_step(2, on_gpu, WORDS, step_by_step) == (step_by_step, "step by step: it does not compile")


def test_the_head_takes_the_compiled_form_where_it_is_proved(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its formulas, without the compiler."""
    made = torch.Generator().manual_seed(0)
    hidden, reference = torch.randn(2, 11, 64, generator=made)
    targets = torch.randint(0, 250, (11,), generator=made).index_fill(0, torch.tensor([2, 7]), IGNORED)
    calls = []

    def formulas(some: Tensor, targets: Tensor, weights: Tensor, kl_weight: float) -> Tensor:
        calls.append(some.shape)
        return written_over(some, targets, weights, torch.tensor(kl_weight))

    def terms() -> tuple[float, float, float, Tensor]:
        states = hidden.clone().requires_grad_()
        found = head_terms(tiny.model, states, targets, 0.7, reference, 0.3)
        found.loss.backward()
        assert states.grad is not None
        return float(found.loss.detach()), found.nll, found.kl, states.grad

    expected = terms()
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused, "compiled", lambda: formulas)
    monkeypatch.setattr(head, "CHUNK", 4)
    found = terms()
    assert calls[-3:] == [(2, 4, 259), (2, 4, 259), (2, 3, 259)]
    assert found[:3] == pytest.approx(expected[:3], rel=1e-5)
    torch.testing.assert_close(found[3], expected[3], rtol=1e-4, atol=1e-6)
