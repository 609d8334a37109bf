"""One pass over a step's rows as a tree: the same log-probabilities, entropies and gradients as row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from emlib.defenses.kl import Beta
from emlib.models.hooks import capture_activations
from emlib.models.load import ChatModel
from emlib.training.rl import grpo
from emlib.training.rl.condition import Condition
from emlib.training.rl.records import read_steps
from emlib.training.rl.shared import against, completion_terms, shared_tree
from tests.training.rl.reinforcing import SYSTEM, disturb, train, weights

PROMPTS = [(5, 6, 7, 8, 9), (5, 6, 7, 20)]
COMPLETIONS = [[(30, 31, 32), (30, 31, 33)], [(40, 41, 42), (40,)]]  # of each prompt; the last one is shorter
PADDING = 0


def batch() -> tuple[Tensor, Tensor]:
    """The rows as TRL passes them: prompts padded on the left, completions on the right."""
    rows = [([PADDING] * (5 - len(prompt)) + [*prompt], [*completion] + [PADDING] * (3 - len(completion)),
             [0] * (5 - len(prompt)) + [1] * (len(prompt) + len(completion)) + [0] * (3 - len(completion)))
            for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True) for completion in group]
    return torch.tensor([before + after for before, after, _ in rows]), torch.tensor([mask for _, _, mask in rows])


def terms(model: nn.Module, ids: Tensor, attended: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    tree = shared_tree(model, ids, attended)
    assert tree is not None
    return completion_terms(model, tree, attended, 3, temperature)


def row_by_row(model: nn.Module, temperature: float) -> tuple[Tensor, Tensor]:
    """The definition: a pass for each row without padding."""
    logps, entropies = torch.zeros(4, 3), torch.zeros(4, 3)
    rows = [(prompt, one) for prompt, group in zip(PROMPTS, COMPLETIONS, strict=True) for one in group]
    for row, (prompt, completion) in enumerate(rows):
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0] / temperature
        for place, token in enumerate(completion):
            after = logits[len(prompt) + place - 1].log_softmax(-1)
            logps[row, place], entropies[row, place] = after[token], -(after.exp() * after).sum().detach()
    return logps, entropies


@pytest.fixture
def trained(lora: PeftModel) -> PeftModel:
    disturb(lora)
    return lora


def gradients(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def test_it_equals_a_pass_for_each_row_with_its_gradients(trained: PeftModel) -> None:
    ids, attended = batch()
    weights = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0], [2.0, -0.7, 1.0], [1.5, 9.0, 9.0]])
    expected = row_by_row(trained, 0.7)
    (expected[0] * weights).sum().backward()
    slope = gradients(trained)
    found = terms(trained, ids, attended, 0.7)
    (found[0] * weights).sum().backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert slope.norm() > 0
    torch.testing.assert_close(gradients(trained), slope, rtol=1e-3, atol=1e-4)
    assert not found[1].requires_grad


def test_a_change_of_another_row_changes_nothing(trained: PeftModel) -> None:
    """A row attends to its own tokens alone, also to none of a row that begins alike."""
    ids, attended = batch()
    before = terms(trained, ids, attended, 1.0)[0]
    ids[1, 6] = 77
    after = terms(trained, ids, attended, 1.0)[0]
    torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.allclose(after[1], before[1])


def test_it_is_used_where_nothing_acts_in_the_model_and_rows_share_enough(trained: PeftModel) -> None:
    ids, attended = batch()
    assert against(trained) == ""
    tree = shared_tree(trained, ids, attended)
    assert tree is not None
    assert len(tree) == 5 + 4 + 1 + 3  # prompt, 30 31 and two ends; the second prompt's last token, 40 41 42
    other = ids.clone()
    other[2, 1] = 9  # the first token of the third prompt, which is padded
    assert shared_tree(trained, other, attended) is None
    with capture_activations(trained, [1]):
        assert shared_tree(trained, ids, attended) is None
    apart = torch.arange(4 * 200).reshape(4, 200) % 250
    apart[:, 0] = 5  # four rows of 200 tokens that share one: 797^2 pairs of positions, in place of 4 x 200^2
    assert shared_tree(trained, apart, torch.ones_like(apart)) is None


def test_it_is_not_used_where_a_mask_is_not_followed_or_dropout_would_be_shared(
        trained: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trained.get_base_model().config
    monkeypatch.setattr(config, "_attn_implementation", "flash_attention_2")
    assert "mask" in against(trained)
    monkeypatch.undo()
    monkeypatch.setattr("emlib.models.trees._ancestors", lambda tree: torch.ones(len(tree), len(tree)).bool().tril())
    assert "differ" in against(trained)
    monkeypatch.undo()
    dropping = next(part for part in trained.modules() if isinstance(part, nn.Dropout | nn.Identity))
    dropping.add_module("more", nn.Dropout(0.1))
    assert "dropout" in against(trained)


def test_rows_that_share_a_token_alone_are_read_one_by_one(trained: PeftModel) -> None:
    rows = torch.arange(2 * 50).reshape(2, 50)
    rows[:, 0] = 5  # 99 of 100 tokens, and 99^2 of 2 x 50^2 pairs, which alone would be few enough
    assert shared_tree(trained, rows, torch.ones_like(rows)) is None


def test_the_reference_reads_the_rows_as_the_loss_does(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of the loss, so that memory is bounded, and a fresh adapter has a KL of 0."""
    sizes = []

    def counted(model: nn.Module, tree: Any, attended: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
        sizes.append((len(attended), torch.is_grad_enabled()))
        return completion_terms(model, tree, attended, *more)

    monkeypatch.setattr(grpo, "completion_terms", counted)
    train(lora, tiny, tmp_path, problems=2, condition=Condition(SYSTEM, (Beta(weight=0.5),)),
          training={"batch_size": 4, "gradient_accumulation": 2})
    assert sizes == [(4, False)] * 2 + [(4, True)] * 2
    assert read_steps(tmp_path)[0].kl == 0


def test_a_run_is_the_same_as_with_trls_own_pass(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Any) -> tuple[Tensor, Tensor]:
        calls.append(arguments)
        return completion_terms(*arguments)

    monkeypatch.setattr(grpo, "completion_terms", counted)
    begun = weights(lora)
    train(lora, tiny, tmp_path / "shared")
    assert len(calls) == 2  # one a step: the log-probabilities of the reference are not needed without a KL term
    found = weights(lora)
    for name, parameter in lora.named_parameters():
        if name in begun:
            parameter.data.copy_(begun[name])
    monkeypatch.setattr(grpo, "against", lambda _: "of this test")
    train(lora, tiny, tmp_path / "alone")
    assert len(calls) == 2
    for one, other in zip(read_steps(tmp_path / "shared"), read_steps(tmp_path / "alone"), strict=True):
        assert (one.reward, one.length) == (other.reward, other.length)
        assert (one.loss, one.grad_norm, one.gap) == pytest.approx((other.loss, other.grad_norm, other.gap), 1e-3, 1e-5)
    for name, weight in weights(lora).items():
        torch.testing.assert_close(found[name], weight, rtol=1e-2, atol=1e-4)
