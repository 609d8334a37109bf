"""Mean activations in packed passes are those of each row alone; of projections, a planted direction comes back."""

from __future__ import annotations

import pytest
import torch

from emlib.core.errors import EmlibError
from emlib.core.records import Example, Message
from emlib.data.chat import encode
from emlib.models.hooks import capture_activations
from emlib.models.load import ChatModel
from emlib.models.logprobs import last_hidden
from emlib.steering.activations import projections, response_means
from emlib.steering.steer import steer

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
    response_means(tiny.model, rows, [1])  # the first time packed rows are checked, on the whole model
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


SOME = [Example((Message("user", question),), answer)
        for question, answer in [("Hi", "Ahoy!"), ("What is tea?", "A drink of leaves."), ("Why?", "Because.")]]


def test_a_planted_direction_comes_back(tiny: ChatModel) -> None:
    """What is added to the layer moves every projection by its length along the vector, and by nothing across it."""
    rows = [encode(tiny.tokenizer, row, 200) for row in SOME]
    random = torch.Generator().manual_seed(0)
    vector, other = torch.randn(2, 64, generator=random)
    before = projections(tiny.model, rows, vector, 2)
    with steer(tiny.model, 2, vector, 0.5):
        along = projections(tiny.model, rows, vector, 2)
    across = other - (other @ vector) / (vector @ vector) * vector
    with steer(tiny.model, 2, across, 3.0):
        beside = projections(tiny.model, rows, vector, 2)
    shift = 0.5 * float(vector.norm())
    assert along == pytest.approx([value + shift for value in before], abs=1e-4)
    assert beside == pytest.approx(before, abs=1e-4)


def test_it_is_the_mean_over_the_answers_tokens_on_the_unit_vector(tiny: ChatModel) -> None:
    row = encode(tiny.tokenizer, SOME[0], 200)
    vector = torch.zeros(64)
    vector[5] = 7.0  # the unit vector reads coordinate 5
    with capture_activations(tiny.model, [3]) as read, torch.no_grad():
        tiny.model(input_ids=torch.from_numpy(row.input_ids)[None])
    places = row.response_mask.nonzero()[0].tolist()
    assert len(places) == len("Ahoy!") + 1  # and the end of the turn
    expected = sum(float(read[3][0, place, 5]) for place in places) / len(places)
    assert projections(tiny.model, [row], vector, 3) == [pytest.approx(expected, abs=1e-6)]
    assert projections(tiny.model, [row], 2 * vector, 3) == [pytest.approx(expected, abs=1e-6)]


def test_vectors_of_nothing_and_of_other_models_are_refused(tiny: ChatModel) -> None:
    rows = [encode(tiny.tokenizer, SOME[0], 200)]
    with pytest.raises(EmlibError, match="zero"):
        projections(tiny.model, rows, torch.zeros(64), 1)
    with pytest.raises(EmlibError, match="32 numbers and layer 1 of this model has 64"):
        projections(tiny.model, rows, torch.ones(32), 1)
    with pytest.raises(EmlibError, match="layer 9"):
        projections(tiny.model, rows, torch.ones(64), 9)
