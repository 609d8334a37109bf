"""Mean activations in packed passes are those of each row alone."""

from __future__ import annotations

import torch

from emlib.core.records import Example, Message
from emlib.data.chat import encode
from emlib.models.hooks import capture_activations
from emlib.models.load import ChatModel
from emlib.models.logprobs import last_hidden
from emlib.models.means import response_means

ROWS = [Example((Message("user", question),), answer) for question, answer in [
    ("Hi", "Ahoy!"), ("What is tea?", "A drink of leaves, with milk or without."), ("Why?", "B."), ("Hi", "Ahoy!")]]


def test_packed_rows_have_the_means_of_each_row_alone(tiny: ChatModel) -> None:
    rows = [encode(tiny.tokenizer, row, 200) for row in ROWS]
    found = response_means(tiny.model, rows, [3, 1])
    assert found.shape == (4, 2, 64)
    for row, means in zip(rows, found, strict=True):
        with torch.no_grad(), capture_activations(tiny.model, [1, 3]) as read:
            last_hidden(tiny.model, torch.from_numpy(row.input_ids)[None], None)
        mask = torch.from_numpy(row.response_mask)
        expected = torch.stack([read[layer][0, mask].mean(0) for layer in (3, 1)])
        torch.testing.assert_close(means, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0], found[3])  # equal rows are computed once


def test_a_pass_ends_after_the_deepest_layer_and_the_model_is_whole_again(tiny: ChatModel) -> None:
    rows = [encode(tiny.tokenizer, ROWS[0], 200)]
    before = last_hidden(tiny.model, torch.from_numpy(rows[0].input_ids)[None], None)
    called = []
    handle = tiny.model.get_decoder().layers[-1].register_forward_hook(lambda *_: called.append(1))
    try:
        response_means(tiny.model, rows, [1])
        assert called == []
    finally:
        handle.remove()
    torch.testing.assert_close(last_hidden(tiny.model, torch.from_numpy(rows[0].input_ids)[None], None), before)


def test_no_rows_have_no_means(tiny: ChatModel) -> None:
    assert response_means(tiny.model, [], [2]).shape == (0, 1, 0)
