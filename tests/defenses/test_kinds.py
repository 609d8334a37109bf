"""What there is of defenses: listed, keyed by all their options, refused where they do not work."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import pytest

from emlib.config import Grpo, load_profile
from emlib.core import registry
from emlib.core.defense import Defense, inactive, needs_of
from emlib.core.errors import ProfileError
from emlib.core.registry import kinds
from emlib.core.schema import check as checked
from emlib.defenses.__main__ import lines
from emlib.defenses.inoculation import Inoculation
from emlib.defenses.interleaving import Alternation
from emlib.defenses.kl import Kl
from emlib.defenses.persona_vector import PersonaVector, Steering
from tests.steps.changed import changes

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


# Options that are in no defense's part of a key, because another entry determines them.
ELSEWHERE = {"InoculationAdapter": {"source", "rows"}, "Inoculated": {"source", "rows"}, "Alternation": {"rows"}}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of values that no profile may have
@pytest.mark.parametrize("cls", [cls for purpose in ("fine-tuning", "grpo") for kind, cls in kinds(purpose).items()
                                 if kind in OURS], ids=lambda cls: cls.__name__)
def test_every_option_of_ours_is_in_keys_and_nothing_else(cls: type[Defense]) -> None:
    given = cls(source="a") if cls is Alternation else cls()
    options = [name for name in cls.model_fields if name not in ELSEWHERE.get(cls.__name__, ())]
    assert set(given.identity) == {"options", "version"}
    assert set(given.identity["options"]) == set(options)
    for name, changed in changes(given):
        assert (changed.identity != given.identity) is (name in options), name


def test_a_raised_version_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Kl().identity["version"] == 1
    monkeypatch.setattr(Kl, "version", 2)
    assert Kl().identity["version"] == 2


def test_an_option_that_was_added_later_changes_no_key_at_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kl, "added_later", frozenset({"on"}))
    assert "on" not in Kl().identity["options"]
    assert Kl(on="pool").identity["options"]["on"] == "pool"


@pytest.mark.parametrize("option", ["source", "source_code", "options"])
def test_an_option_of_any_name_stays_beside_the_source_of_a_class_of_ones_own(option: str) -> None:
    class Sourced(PersonaVector):
        listed: ClassVar = False
        source: str = "a"
        source_code: str = "a"
        options: str = "a"

        def named_layers(self, count: int) -> tuple[int, ...]:
            return ()

    one, two = Sourced().identity, checked(Sourced, {option: "b"}, "mine").identity
    assert (one["options"][option], two["options"][option]) == ("a", "b")
    assert {**one, "options": None} == {**two, "options": None}


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
