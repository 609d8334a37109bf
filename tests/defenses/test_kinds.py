"""What there is of defenses: listed, keyed as ever, refused where they do not work."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import pytest

from emlib.config import Grpo, load_profile
from emlib.core import registry
from emlib.core.defense import RESERVED, Defense, inactive, needs_of
from emlib.core.errors import ProfileError
from emlib.core.registry import kinds
from emlib.defenses.__main__ import lines
from emlib.defenses.inoculation import Inoculation
from emlib.defenses.interleaving import Alternation
from emlib.defenses.kl import Beta, Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector, Steering

OURS = {"concept_ablation", "consistency", "early_stop", "filtering", "inoculation", "inoculation_adapter",
        "interleaving", "kl", "ldifs", "persona_vector", "projection_penalty", "safe_lora"}


def test_a_line_for_each_kind_says_options_sweep_source_and_where_it_works() -> None:
    found = {line.partition(":")[0]: line for line in lines()}
    assert set(found) >= OURS
    for words in ("weight=0.1", "sweeps weight", "equation 1", "in fine-tuning, GRPO"):
        assert words in found["kl"]
    assert "GRPO" not in found["ldifs"]
    assert [kind for kind in sorted(OURS) if "works after fine-tuning (post-training)" in found[kind]] == ["safe_lora"]


def test_listing_them_loads_no_model_library() -> None:
    code = "import sys, emlib.defenses.__main__ as m; print(*m.lines()); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("defense", "identity"), [
    (Kl(), {"kind": "kl", "weight": 0.1, "tokens": "all", "reference": "computed"}),
    (Ldifs(), {"kind": "ldifs", "weight": 1.0, "every": 5, "layers": None, "normalize": False, "variant": "gradient"}),
    (PersonaVector(), {"kind": "persona_vector", "strength": 5.0, "layer": 20}),
    (Beta(), {"kind": "kl", "weight": 0.1}),
    (Steering(), {"kind": "persona_vector", "strength": 5.0, "layer": 20, "steer": "both"}),
    (Alternation(source="a", rows=3), {"kind": "interleaving", "source": "a", "share": 0.2})])
def test_keys_of_ours_hold_their_options_alone(defense: Defense, identity: dict[str, object]) -> None:
    assert defense.identity == identity
    assert list(defense.identity) == list(identity)  # in this order: the kind comes first


def test_a_raised_version_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kl, "version", 2)
    assert Kl().identity["version"] == 2


def test_every_kind_of_ours_tells_tables_what_they_show() -> None:
    for kind in OURS:
        cls = kinds()[kind]
        assert cls.label
        assert cls.origin
        assert cls.equation
        assert cls.model_fields.keys() >= ({cls.swept} if cls.swept else set())
        assert cls().cost
    assert {kind for kind in OURS if kinds()[kind].data_only} == {
        "consistency", "filtering", "inoculation", "interleaving"}
    assert OURS - kinds("grpo").keys() == {"consistency", "filtering", "ldifs", "safe_lora"}


def test_one_name_for_two_artefacts_is_refused() -> None:
    class Recipes:
        count = 0

        def vector(self) -> int:
            self.count += 1
            return self.count

    with pytest.raises(ProfileError, match="different artefacts under one name, 'vector'"):
        needs_of([PersonaVector(), Steering()], Recipes(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_an_artefact_called_like_an_entry_of_the_key_is_refused(name: str) -> None:
    class Naming(PersonaVector):
        listed: ClassVar = False

        def needs(self, recipes: Any, spec: Any) -> dict[str, Any]:
            return {name: "the pool's rows"}

    with pytest.raises(ProfileError, match=rf"'persona_vector' calls an artefact '{name}' .*such as 'own_{name}'"):
        needs_of([Naming()], None, None)  # type: ignore[arg-type]


def test_a_name_without_a_label_has_none() -> None:
    assert (registry.label_of_kind("kl"), registry.label_of_kind("nothing")) == ("KL-Div.", "")


def test_a_defense_that_acts_while_completions_are_sampled_is_refused_with_vllm() -> None:
    """Also a plain defense, of ours or of one's own, and not only the classes for reinforcement learning."""
    [reason] = inactive([Kl(), PersonaVector()], "vllm")
    assert "'persona_vector' cannot act. Choose engine 'transformers'" in reason
    assert not list(inactive([Kl(), PersonaVector()], "transformers"))
    assert not list(inactive([Kl(), Inoculation()], "vllm"))
    for kind in ("concept_ablation", "inoculation_adapter"):
        spec = load_profile("tiny").grpo
        assert spec is not None
        with pytest.raises(ValueError, match=f"method 'x': vLLM samples .* '{kind}' cannot act"):
            Grpo.model_validate(spec.model_dump() | {"engine": "vllm", "methods": (
                {"name": "x", "defenses": ({"kind": kind},)},)})
