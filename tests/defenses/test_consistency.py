"""Consistency training: the base model's answers under the wrapped prompt. test_rows.py has its loss."""

from __future__ import annotations

import pytest

from emlib.config import Method, load_profile
from emlib.core.schema import check
from emlib.defenses.consistency import Consistency
from emlib.steps.recipes import Recipes


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
    assert step.system == recipes.inputs.stated_trait.inoculation_prompt
    assert step.fraction == 0.25
    plain = recipes.pool_rows(spec, fraction=0.25, choose="random", answers="pool")
    assert plain.settings["system"] is None
    assert recipes.wrapped_rows(spec, 0.25, "Sing.").settings["system"] == "Sing."


def test_without_a_pool_or_a_share() -> None:
    class Section:
        pool = None

    with pytest.raises(ValueError, match="no section 'pool'"):
        Consistency().fits(Section(), "x")
    assert Consistency(share=0.0).is_null
    assert not Consistency(share=0.0).needs(None, None)  # type: ignore[arg-type]
