"""LDIFS as a pure function, and the layers that it reads."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from emlib.core.errors import EmlibError
from emlib.defenses.ldifs import Ldifs, feature_distance
from emlib.training.toy import gradient_norm


def test_the_feature_distance_by_hand() -> None:
    # two layers, one position; features of two numbers
    a, b = [torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])], [torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])]
    assert float(feature_distance(a, b)) == 9 + 9
    # normalized: (3, 0, 0, 4) / 5 and (0, 0, 0, 1): 0.6^2 + 0.2^2
    assert float(feature_distance(a, b, normalize=True)) == pytest.approx(0.36 + 0.04)


@pytest.mark.parametrize(("every", "layers"), [(5, (5, 10, 15, 20, 25)), (2, tuple(range(2, 29, 2))), (40, ())])
def test_every_fifth_layer(every: int, layers: tuple[int, ...]) -> None:
    assert Ldifs(every=every).reads_layers(28) == layers


def test_it_is_refused_in_a_model_none_of_whose_layers_it_reads() -> None:
    assert gradient_norm(Ldifs(every=4)) > 0  # the model has 4
    with pytest.raises(EmlibError, match="'ldifs' uses none of the model's 4 layers"):
        gradient_norm(Ldifs(every=5))
    assert gradient_norm(Ldifs(every=5, weight=0.0)) == 0  # at its null setting it is left out


def test_the_denominator_is_an_option_whose_default_follows_from_what_is_compared() -> None:
    assert (Ldifs().per, Ldifs(normalize=True).per) == ("token", "row")
    assert (Ldifs(per="step").per, Ldifs(normalize=True, per="token").per) == ("step", "token")
    with pytest.raises(ValidationError, match="'token', 'row' or 'step'"):
        Ldifs(per="response_token")


def test_the_denominator_is_in_the_key_whether_it_is_stated_or_follows() -> None:
    assert Ldifs(per="token").identity == Ldifs().identity
    assert Ldifs(normalize=True, per="row").identity == Ldifs(normalize=True).identity
    assert [Ldifs(per=per).identity["options"]["per"] for per in ("token", "row", "step")] == ["token", "row", "step"]
