"""Which defense to try first: the numbers of the box are those of the paper's tables, by hand."""

from __future__ import annotations

import pytest

from emlib.report.paper import choice


def test_the_box_has_the_papers_numbers() -> None:
    head, _, many, one, prompt, reinforced = choice.box().splitlines()
    assert head.count("|") == many.count("|") == reinforced.count("|")
    assert "94% less; keeps 102%" in many
    assert "5% remove 78 to 92% there" in many
    assert "87% less; keeps 99%" in one
    assert "42% less" in prompt
    assert "more in the 32B model (61 to 89%, Table 7), where it keeps less" in prompt
    assert "accuracy 94% with 20% of supervised steps, 91% without a defense, 66 and 38%" in reinforced


def test_a_reduction_of_the_larger_model_by_hand() -> None:
    found = choice.reductions(choice.LARGER)["interleaving++"]
    assert found.max() == pytest.approx(100 - 100 * 0.33 / 4.18)
