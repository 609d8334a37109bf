"""Log-probabilities from hidden states equal those from full logits, whatever the chunks; what is apart is refused."""

from __future__ import annotations

import math

import pytest
import torch

from emlib.config import Lora
from emlib.core.errors import EmlibError
from emlib.models import adapters
from emlib.models.load import ChatModel
from emlib.models.logprobs import (
    MEAN_APART,
    WORST_APART,
    backbone,
    head,
    last_hidden,
    predicting,
    refuse_disagreement,
    token_nll,
)
from tests.made import ROUNDING, apart

LORA = Lora(rank=4, alpha=8)


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows of 9 and 6 tokens, padded on the right, with answers of 4 and 2 tokens."""
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(seed))
    attention = torch.ones(2, 9, dtype=torch.long)
    attention[1, 6:] = 0
    response = torch.zeros(2, 9, dtype=torch.bool)
    response[0, 5:9] = True
    response[1, 4:6] = True
    return ids, attention, response


def test_position_t_predicts_token_t_plus_1() -> None:
    hidden = torch.arange(8.0).reshape(1, 4, 2)  # position t holds (2t, 2t + 1)
    ids = torch.tensor([[10, 11, 12, 13]])
    response = torch.tensor([[False, False, True, True]])
    states, targets = predicting(hidden, ids, response)
    assert targets.tolist() == [12, 13]
    assert states.tolist() == [[2, 3], [4, 5]]  # positions 1 and 2


def test_by_hand_on_three_words() -> None:
    # logits (0, ln 2, ln 3): probabilities 1/6, 2/6, 3/6
    logits = torch.log(torch.tensor([[1.0, 2.0, 3.0]] * 3))
    nll = token_nll(torch.eye(3), torch.tensor([0, 1, 2]), lambda h: h @ logits)
    assert nll.exp().tolist() == pytest.approx([6, 3, 2])


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 6, 100])
def test_chunks_change_neither_loss_nor_gradient(tiny: ChatModel, chunk: int) -> None:
    ids, attention, response = rows()
    with adapters.new_lora(tiny.model, LORA, seed=0) as model:
        gradients = []
        for size in (1000, chunk):
            model.zero_grad()
            states = predicting(last_hidden(model, ids, attention), ids, response)
            nll = token_nll(*states, head(model), chunk=size)
            nll.sum().backward()
            trained = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
            gradients.append((nll.detach(), torch.cat(trained)))
    (whole, gradient), (parts, gradient_of_parts) = gradients
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert gradient.norm() > 0
    assert apart(gradient_of_parts, gradient) < ROUNDING


def test_equals_a_naive_computation_in_float64(tiny: ChatModel) -> None:
    ids, attention, response = rows()
    logits = tiny.model.double()(input_ids=ids, attention_mask=attention).logits
    log_p = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    naive = -log_p[response[:, 1:]]
    tiny.model.float()
    nll = token_nll(*predicting(last_hidden(tiny.model, ids, attention), ids, response), head(tiny.model))
    torch.testing.assert_close(nll.double(), naive, rtol=1e-5, atol=1e-6)


def test_equals_the_loss_of_transformers(tiny: ChatModel) -> None:
    ids, _, response = rows()
    ids, response = ids[:1], response[:1]
    labels = ids.masked_fill(~response, -100)
    expected = tiny.model(input_ids=ids, labels=labels).loss
    nll = token_nll(*predicting(last_hidden(tiny.model, ids, None), ids, response), head(tiny.model))
    torch.testing.assert_close(nll.mean(), expected, rtol=1e-5, atol=1e-6)


def test_no_response_tokens_give_no_losses(tiny: ChatModel) -> None:
    ids, _, _ = rows()
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    assert token_nll(*predicting(last_hidden(tiny.model, ids, None), ids, nothing), head(tiny.model)).shape == (0,)


def test_backbone_and_head_reach_through_peft(tiny: ChatModel) -> None:
    plain = backbone(tiny.model), head(tiny.model)
    with adapters.new_lora(tiny.model, LORA, seed=0) as model:
        assert (backbone(model), head(model)) == plain


def test_the_distance_is_the_mean_of_the_tokens() -> None:
    assert refuse_disagreement("A", [-1.0, -2.0], [-1.02, -1.98]) == pytest.approx(0.02)
    assert refuse_disagreement("A", [-1.0], [-1.0]) == 0


@pytest.mark.parametrize(("theirs", "said"), [
    ([-1.0, -2.0, -3.0], "gave 3 log-probabilities of 2 tokens"),
    ([], "gave 0 log-probabilities of 2 tokens"),
    ([-1.0, math.nan], "no number"),
    ([-1.0, -math.inf], "no number"),
    ([-1.0 - MEAN_APART, -2.0 - 1.2 * MEAN_APART], "differ from those of transformers by 0.055 nats"),
])
def test_what_is_apart_is_refused_by_name(theirs: list[float], said: str) -> None:
    with pytest.raises(EmlibError, match=f"^Somebody.*{said}"):
        refuse_disagreement("Somebody", theirs, [-1.0, -2.0])


def test_one_token_that_is_far_off_is_refused_however_many_are_right() -> None:
    right = [-1.0] * 1000
    refuse_disagreement("A", [-1.0 - WORST_APART + 0.01, *right[1:]], right)
    with pytest.raises(EmlibError, match=r"1\.01 at most"):
        refuse_disagreement("A", [-1.0 - WORST_APART - 0.01, *right[1:]], right)
