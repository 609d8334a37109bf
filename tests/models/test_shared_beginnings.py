"""What the prompts of packed rows begin with is computed once, and every result is that of whole rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from emlib.config import Lora
from emlib.core.defense import Defense
from emlib.data.chat import Encoded
from emlib.defenses.inoculation import Inoculation
from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector
from emlib.models.adapters import new_lora
from emlib.models.batches import collate, forward_batches, pack
from emlib.models.kernels import blockwise, fitted, shares
from emlib.models.kernels.blockwise import CausalAttention
from emlib.models.kernels.packing import Row, rows_in
from emlib.models.load import ChatModel
from emlib.models.trees import read_rows, tree_of
from emlib.scoring.nll import batch_nll
from emlib.steering.activations import response_means
from emlib.training.losses import row_losses
from emlib.training.objective import Objective, Totals
from tests.made import ROUNDING, apart, planted, some_rows

BEGINNING = np.arange(100, 112)  # tokens of a chat template
ARTEFACTS = planted(torch.randn(64, generator=torch.Generator().manual_seed(5)))
CPU = torch.device("cpu")


def rows(count: int = 4) -> list[Encoded]:
    """Rows with the same beginning; the next tokens differ."""
    return [Encoded(np.concatenate([BEGINNING, [place], row.input_ids]),
                    np.concatenate([np.zeros(len(BEGINNING) + 1, dtype=bool), row.response_mask]), False)
            for place, row in enumerate(some_rows(count))]


def gradient(chat: ChatModel, responses_only: bool, *, recomputed: bool = False) -> tuple[Tensor, int]:
    """The gradient of a step of four rows in one pass, and the positions of the pass."""
    with new_lora(chat.model, Lora(rank=4, alpha=8), seed=0) as model, fitted(model):
        for index, weights in enumerate(p for p in model.parameters() if p.requires_grad):
            weights.data += 0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(index))
        model.train()
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        [batch] = forward_batches(rows(), 4, model, responses_only=responses_only)
        Objective().backward(model, batch, Totals.of([batch]))
        model.gradient_checkpointing_disable()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]), (
            batch.spans[-1][1].stop)


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_gradient_is_that_of_whole_rows(tiny: ChatModel, recomputed: bool) -> None:
    expected, whole = gradient(tiny, responses_only=False)
    found, positions = gradient(tiny, responses_only=True, recomputed=recomputed)
    assert apart(found, expected) < ROUNDING
    assert positions == whole - 3 * len(BEGINNING)


def test_losses_and_activations_are_those_of_rows_alone(tiny: ChatModel) -> None:
    model, several = tiny.model, rows()
    expected = [batch_nll(model, [row])[0] for row in several]
    with fitted(model):
        assert shares(model)
        assert row_losses(model, several, 4) == pytest.approx(expected, rel=1e-5)
    assert batch_nll(model, several) == pytest.approx(expected, rel=1e-5)
    alone = torch.cat([response_means(model, [row], [2, 4]) for row in several])
    assert apart(response_means(model, several, [2, 4]), alone) < ROUNDING


def test_a_line_has_the_beginning_once_and_counts_it_for_each_row() -> None:
    several = rows(3)
    line = pack(several, CPU, shared=len(BEGINNING))
    whole = collate(several, CPU)
    assert line.tokens == whole.tokens == sum(len(row.input_ids) for row in several)
    assert line.response_tokens == whole.response_tokens
    assert line.spans[-1][1].stop == line.tokens - 2 * len(BEGINNING)
    assert line.position_ids is not None
    for place, row in zip(line.spans[1:], several[1:], strict=True):
        assert line.input_ids[place].tolist() == row.input_ids[12:].tolist()
        assert line.position_ids[place].tolist() == list(range(12, len(row.input_ids)))
    found = rows_in(line.position_ids, line.input_ids.shape[1])
    assert [row.shared for row in found] == [0, 12, 12]
    assert [row.own.start for row in found] == [place.start for _, place in line.spans]


def test_a_prompt_keeps_the_token_that_predicts_its_response(tiny: ChatModel) -> None:
    """Two rows with the same prompt: all but its last token is shared."""
    ids = np.arange(50, 65)
    several = [Encoded(np.append(ids, [last, last]), np.arange(17) >= 15, False) for last in (7, 8)]
    with fitted(tiny.model):
        [line] = forward_batches(several, 2, tiny.model, responses_only=True)
    assert line.shared == 14
    alone = [batch_nll(tiny.model, [row])[0] for row in several]
    assert batch_nll(tiny.model, several) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("block", [3, 128])
def test_the_attention_of_a_shared_beginning_by_a_mask(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Three rows of 7, 6 and 3 positions, of which the last two share the first two of the first."""
    monkeypatch.setattr(blockwise, "BLOCK", block)
    line = (Row(slice(0, 7)), Row(slice(7, 11), 2), Row(slice(11, 12), 2))
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 12, 3, dtype=torch.float64, generator=made).requires_grad_()
               for heads in (4, 2, 2))
    seen = torch.zeros(12, 12, dtype=torch.bool)
    for row in line:
        seen[row.own, row.own] = True
        seen[row.own, :row.shared] = True
    mask = seen & torch.ones(12, 12, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.7, enable_gqa=True)
    given = CausalAttention.apply(q, k, v, 0.7, line)
    torch.testing.assert_close(given, expected)
    upstream = torch.randn(given.shape, dtype=torch.float64, generator=made)
    for mine, theirs in zip(torch.autograd.grad(given, (q, k, v), upstream),
                            torch.autograd.grad(expected, (q, k, v), upstream), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_tree_of_rows_is_not_taken_for_packed_rows(tiny: ChatModel) -> None:
    """Its positions restart as well; its own mask says which positions see which."""
    tree = tree_of([[1, 2, 3, 4], [1, 2, 5, 6], [1, 7, 8]])
    with torch.no_grad():
        plain = read_rows(tiny.model, tree)
        with fitted(tiny.model):
            assert apart(read_rows(tiny.model, tree), plain) < ROUNDING


@pytest.mark.parametrize(("defenses", "only"), [
    ((), True), ((Inoculation(kind="inoculation"),), True), ((Kl(kind="kl", weight=0.3),), False),
    ((Ldifs(kind="ldifs", weight=0.2),), False), ((PersonaVector(kind="persona_vector", layer=3),), False)])
def test_where_a_defense_acts_within_the_passes_rows_are_whole(defenses: Sequence[Defense], only: bool) -> None:
    assert Objective(defenses, ARTEFACTS).reads_responses_only == only


def test_with_dropout_or_a_window_rows_are_whole(tiny: ChatModel) -> None:
    with new_lora(tiny.model, Lora(rank=4, alpha=8, dropout=0.1), seed=0) as model, fitted(model):
        assert shares(model.eval())
        assert not shares(model.train())
    tiny.model.config.attention_dropout = 0.1
    with fitted(tiny.model):
        assert shares(tiny.model.eval())
        assert not shares(tiny.model.train())
    tiny.model.config.attention_dropout = 0.0
    tiny.model.config.sliding_window = 4096
    tiny.model.config.layer_types[:] = ["sliding_attention"] * 4
    with fitted(tiny.model):
        assert not shares(tiny.model)
    assert not shares(tiny.model)  # transformers' own attention


def test_the_windows_of_a_model_that_also_sees_are_those_of_its_text_part() -> None:
    """Its outer configuration has neither a vocabulary nor layers."""
    text = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16,
            "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8}
    sight = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 28, "patch_size": 14}
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=sight)).eval()
    alone = [row_losses(model, [row], 1)[0] for row in rows()]
    with fitted(model):
        assert not shares(model)
        assert row_losses(model, rows(), 4) == pytest.approx(alone, rel=1e-5)


def test_the_check_leaves_gradients_as_they_were(tiny: ChatModel) -> None:
    for weights in tiny.model.parameters():
        weights.grad = torch.ones_like(weights)
    with fitted(tiny.model):
        assert shares(tiny.model)
    assert all(bool((weights.grad == 1).all()) for weights in tiny.model.parameters() if weights.grad is not None)


def test_a_pass_without_rows_has_no_tokens() -> None:
    assert pack(rows(3), CPU, shared=len(BEGINNING)).blank().tokens == 0


def test_a_model_in_which_rows_differ_shares_nothing(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here attention takes every row for whole, as it does in a model that passes no positions to its attention."""
    whole = lambda position_ids, length: tuple(Row(row.own) for row in rows_in(position_ids, length))  # noqa: E731
    monkeypatch.setattr(blockwise, "rows_in", whole)
    with fitted(tiny.model):
        assert not shares(tiny.model)
        [batch] = forward_batches(rows(), 4, tiny.model, responses_only=True)
    assert batch.shared == 0
