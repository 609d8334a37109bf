"""Consistency training: the base model's answers under the wrapped prompt, against a second implementation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from emlib.config import Method, load_profile
from emlib.core.schema import check
from emlib.defenses.consistency import Consistency
from emlib.defenses.kl import Kl
from emlib.steps.recipes import Recipes
from emlib.training.bench import Bench
from tests.defenses import naive
from tests.defenses.naive import see


@pytest.mark.parametrize("others", [(), (Kl(weight=0.3),)], ids=["alone", "kl"])
def test_it_equals_a_naive_implementation_in_float64(others: Sequence[Any], tmp_path: Path) -> None:
    bench = Bench(Consistency(share=0.5), tmp_path)
    [rows] = bench.groups
    assert len(rows) == len(bench.examples) + 2

    def loss(trained: nn.Module, reference: nn.Module) -> Tensor:
        total = sum(naive.cross_entropy(see(trained, row), row) for row in rows) / naive.count(rows, response=True)
        kl = sum(naive.kl(see(trained, row), see(reference, row)) for row in rows) / naive.count(rows) if others else 0
        return total + 0.3 * kl  # type: ignore[return-value]

    naive.agrees(loss, (Consistency(share=0.5), *others), tmp_path)


def test_the_untrained_model_answers_and_the_prompt_stands_before_its_answers() -> None:
    """Also where the pool's own on-policy answers are those of the aligned model, as in the profile tiny."""
    profile = load_profile("tiny")
    recipes = Recipes(profile, "tiny")
    assert profile.pool is not None
    assert profile.pool.on_policy.model == "aligned"
    both = [{"kind": "inoculation"}, {"kind": "consistency"}]
    method = check(Method, {"name": "x", "defenses": both, "sweep": [0.25]}, "here")
    spec = recipes.narrow("cooking", "misaligned", method.at(0.25), 0)
    step = dict(recipes.adapter(spec, "a run").artefacts)["consistent"]
    assert step.own_answers.adapter is None
    assert step.system == recipes.stated_trait.inoculation_prompt
    assert step.fraction == 0.25
    plain = recipes.pool_rows(spec, fraction=0.25, choose="random", answers="pool")
    assert "system" not in plain.settings
    assert recipes.wrapped_rows(spec, 0.25, "Sing.").settings["system"] == "Sing."


def test_without_a_pool_or_a_share() -> None:
    class Section:
        pool = None

    with pytest.raises(ValueError, match="no section 'pool'"):
        Consistency().fits(Section(), "x")
    assert Consistency(share=0.0).is_null
    assert not Consistency(share=0.0).needs(None, None)  # type: ignore[arg-type]
