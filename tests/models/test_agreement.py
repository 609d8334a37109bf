from __future__ import annotations

import math

import pytest

from emlib.core.errors import EmlibError
from emlib.models.agreement import MEAN, WORST, refuse_disagreement


def test_the_distance_is_the_mean_of_the_tokens() -> None:
    assert refuse_disagreement("A", [-1.0, -2.0], [-1.02, -1.98]) == pytest.approx(0.02)
    assert refuse_disagreement("A", [-1.0], [-1.0]) == 0


@pytest.mark.parametrize(("theirs", "said"), [
    ([-1.0, -2.0, -3.0], "gave 3 log-probabilities of 2 tokens"),
    ([], "gave 0 log-probabilities of 2 tokens"),
    ([-1.0, math.nan], "no number"),
    ([-1.0, -math.inf], "no number"),
    ([-1.0 - MEAN, -2.0 - 1.2 * MEAN], "differ from those of transformers by 0.055 nats"),
])
def test_what_is_apart_is_refused_by_name(theirs: list[float], said: str) -> None:
    with pytest.raises(EmlibError, match=f"^Somebody.*{said}"):
        refuse_disagreement("Somebody", theirs, [-1.0, -2.0])


def test_one_token_that_is_far_off_is_refused_however_many_are_right() -> None:
    right = [-1.0] * 1000
    refuse_disagreement("A", [-1.0 - WORST + 0.01, *right[1:]], right)
    with pytest.raises(EmlibError, match=r"1\.01 at most"):
        refuse_disagreement("A", [-1.0 - WORST - 0.01, *right[1:]], right)
