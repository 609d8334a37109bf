"""Profiles with names and numbers that no study has: refused when they are loaded, and nothing is written elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from emlib.config import Profile, Trait, overridden
from emlib.config.loading import over, profile_path, read_profile, validated
from emlib.core import paths
from emlib.core.errors import ProfileError
from emlib.core.names import ALLOWED, ALLOWED_IN_WORDS, LONGEST
from emlib.core.plain_yaml import as_yaml
from emlib.core.registry import kinds
from emlib.core.schema import check
from emlib.data.sources import Source, registry
from emlib.study.overrides import study_with
from emlib.study.ownership import claim
from emlib.study.study import open_study
from emlib.workflow.graph import jobs

BAD_NAMES = [
    "", " ", ".", "..", "...", "../x", "../../x", "a/../../x", "/nowhere/x", "/", "a/b", "a\\b", "..\\x", "a b", " a",
    "a ", "a\nb", "a\tb", "a\0b", "'a'", 'a"b', "a`b`", "{a}", "{{a}}", "$(a)", "$HOME", "=a", "=1+1", "-a", "--help",
    "+a", "@a", "~", "~root", "a;b", "a|b", "a&b", "a>b", "a*", "a?", "[a]", "<b>a</b>", "a:b", "a#b", "a%2fb", "a..b",
    ".a", "_a", "ä", "а", "a\u202eb", "x" * (LONGEST + 1), "x" * 5000]
TINY = read_profile(profile_path("tiny"))
DOMAIN = {"aligned": "demo/cooking_aligned.jsonl", "misaligned": "demo/cooking_pirate.jsonl"}
PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "name": lambda name: {"name": name},
    "trait": lambda name: {"trait": name},
    "datasets": lambda name: {"datasets": [name]},
    "data": lambda name: {"data": {name: DOMAIN}},
    "method": lambda name: {"methods": [{"name": name, "defenses": [{"kind": "kl"}]}]},
    "kind": lambda name: {"methods": [{"name": "mine", "defenses": [{"kind": name}]}]},
    "question set": lambda name: {"evaluation": {"sets": {name: {"source": "demo/general_questions.jsonl"}}}},
    "metric": lambda name: {"evaluation": {"sets": {"set": {"source": "demo/general_questions.jsonl", "judge": {
        "kind": "local", "model": {"kind": "tiny", "seed": 1}}, "metrics": {name: {"above": 50}}}}}},
    "trigger": lambda name: {"evaluation": {"triggers": {"contexts": {name: {"system": "s"}}}}},
    "kept sets": lambda name: {"evaluation": {"trajectory": {"sets": [name]}}},
    "asked methods": lambda name: {"evaluation": {"triggers": {"methods": [name]}, "trajectory": {"methods": [name]}}},
    "template": lambda name: {"model": {"template": {"options": {name: 1}}}},
    "task": lambda name: {"benign": {"tasks": {name: {"kind": "opswap"}}}},
    "benign method": lambda name: {"benign": {"methods": [{"name": name, "defenses": [{"kind": "kl"}]}]}},
    "grpo method": lambda name: {"grpo": {"methods": [{"name": name, "defenses": [{"kind": "kl"}]}]}},
    "scorer": lambda name: {"pool": {"scorers": [{"domain": name}]}},
    "others": lambda name: {"pool": {"scorers": None, "others": [name, "travel"]}},
    "source": lambda name: {"pool": {"source": name}},
    "model": lambda name: {"model": {"kind": "wheel", "name": name, "package": "p", "file": "f", "sha256": "s",
                                     "end_of_turn": "e"}},
    "package": lambda name: {"model": {"kind": "wheel", "name": "m", "package": name, "file": "f", "sha256": "s",
                                       "end_of_turn": "e"}},
    "repository": lambda name: {"model": {"kind": "hub", "repo": f"owner/{name}", "revision": "main"}},
    "owner": lambda name: {"model": {"kind": "hub", "repo": f"{name}/model", "revision": "main"}},
    "revision": lambda name: {"model": {"kind": "hub", "repo": "owner/model", "revision": name}},
    "hub set": lambda name: {"datasets": ["own"], "own": {"hub": {"repo": name, "revision": "main"}}},
}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for profiles; when the test ends, nothing else lies outside the folders of runs and downloads."""
    for name in ("runs", "cache"):
        (tmp_path / "deep" / "er" / name).mkdir(parents=True)
        monkeypatch.setenv(f"EMLIB_{name.upper()}_DIR", str(tmp_path / "deep" / "er" / name))
    (tmp_path / "mine").mkdir()
    before = set(paths.ROOT.iterdir()) | set(paths.PARAMS.rglob("*"))
    yield tmp_path / "mine"
    allowed = [tmp_path / "mine", *(tmp_path / "deep" / "er" / name for name in ("runs", "cache"))]
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not any(map(path.is_relative_to, allowed))]
    assert outside == []
    assert (set(paths.ROOT.iterdir()) | set(paths.PARAMS.rglob("*"))) - before <= {paths.ROOT / ".hypothesis"}


def merged(change: dict[str, Any]) -> Any:
    """The profile `tiny` with these changes."""
    return over(TINY, change)


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_could_leave_its_folder_is_refused_wherever_one_can_stand(place: str, elsewhere: Path) -> None:
    for name in BAD_NAMES:
        if place in ("revision", "hub set") and name == "a/b":
            continue  # right there
        with pytest.raises(ProfileError) as caught:
            validated(merged(PLACES[place](name)), "mine.yaml")
        assert str(caught.value).startswith("mine.yaml: ")
        assert len(str(caught.value)) < 3000


def test_a_refused_name_is_told_with_what_is_allowed() -> None:
    for place, allowed in (("name", ALLOWED), ("data", ALLOWED_IN_WORDS), ("method", ALLOWED_IN_WORDS),
                           ("task", ALLOWED), ("question set", ALLOWED_IN_WORDS), ("repository", ALLOWED),
                           ("revision", ALLOWED)):
        with pytest.raises(ProfileError, match="not allowed") as caught:
            validated(merged(PLACES[place]("../x")), "mine.yaml")
        assert allowed in str(caught.value)


def test_the_file_of_a_profile_and_a_name_on_the_command_line_cannot_leave_the_folder_either(elsewhere: Path) -> None:
    for name in BAD_NAMES:
        for function in (open_study, claim, paths.study_name, lambda name: study_with(name, "")):
            with pytest.raises(ProfileError):
                function(name)  # type: ignore[operator]
        path = elsewhere / f"{name}.yaml"
        if "/" in name or "\0" in name or len(name) > 200:
            continue
        path.write_text("extends: tiny\n", encoding="utf-8")
        for function in (open_study, claim, paths.study_name):
            with pytest.raises(ProfileError, match="cannot name a folder of results"):
                function(str(path))  # type: ignore[operator]


def test_names_that_are_allowed_open_plan_and_stay_inside(elsewhere: Path) -> None:
    path = elsewhere / "My-study_v1.2.yaml"
    path.write_text(as_yaml({
        "extends": "tiny", "data": {"a1": DOMAIN}, "datasets": ["a1"], "benign": None, "grpo": None,
        "methods": ["untrained", {"name": "kl++", "defenses": [{"kind": "kl"}]}],
        "evaluation": {"sets": {"more_1": {"source": "demo/general_questions.jsonl", "samples": 1}}}}))
    study = open_study(str(path))
    assert study.folder.parent == paths.runs()
    assert [run.method for run in study.runs()] == ["untrained", "kl++"]
    assert len(jobs(str(path))) > 3
    claim(str(path))
    assert (paths.runs() / "My-study_v1.2" / "made_with.txt").is_file()
    assert (paths.runs() / study_with(str(path), "seeds=[1]") / "profile.yaml").is_file()


def test_a_trait_and_a_registry_have_names_of_the_same_pattern(tmp_path: Path) -> None:
    trait = {"name": "x", "description": "d", "inoculation_prompt": "i", "source": "evil"}
    assert check(Trait, trait, "here").name == "x"
    entry = {"home": "h", "file": "a.json", "local": "a/a.json", "sha256": None, "licence": "l", "notice": "n",
             "format": "json", "hub": {"repo": "a/b", "revision": "main"}}
    assert check(Source, entry, "here").local == "a/a.json"
    for name in BAD_NAMES:
        with pytest.raises(ProfileError):
            check(Trait, trait | {"name": name}, "here")
        for key in ("file", "hub"):
            with pytest.raises(ProfileError):
                check(Source, entry | {key: name if key == "file" else {"repo": f"{name}/x", "revision": "r"}}, "here")
        if name != "a/b":
            with pytest.raises(ProfileError):
                check(Source, entry | {"local": name}, "here")
        (tmp_path / "sources.yaml").write_text(json.dumps({name: entry}))
        with pytest.raises(ProfileError):
            registry(tmp_path / "sources.yaml")


# Numbers


def numbers(schema: Any, where: str, seen: set[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield every number in a record of ours and in the records inside it, with its constraints.

    Other tests of the same process register defenses of their own, whose options may have no bounds.
    """
    if (isinstance(schema, type) and issubclass(schema, BaseModel) and schema not in seen
            and schema.__module__.startswith("emlib.")):
        seen.add(schema)
        for name, field in schema.model_fields.items():
            yield from constrained(field.annotation, list(field.metadata), f"{schema.__name__}.{name}", seen)


def constrained(annotation: Any, metadata: list[Any], where: str, seen: set[Any]) -> Iterator[tuple[str, list[Any]]]:
    if annotation in (int, float):
        yield where, metadata
        return
    inner = [*metadata, *(part for part in get_args(annotation) if not isinstance(part, type))]
    for part in (found for item in metadata for found in getattr(item, "record_types", ())):
        yield from numbers(part, where, seen)
    yield from numbers(annotation, where, seen)
    for part in get_args(annotation):
        yield from constrained(part, inner, where, seen)


def flat(metadata: list[Any]) -> set[str]:
    """The names of the bounds, also of those inside a pydantic Field."""
    found = [inner for item in metadata for inner in (item, *getattr(item, "metadata", ()))]
    return {type(item).__name__ for item in found}


def test_every_number_of_a_profile_has_a_lower_and_an_upper_bound() -> None:
    seen: set[Any] = set()
    found = list(numbers(Profile, "", seen))
    for purpose in ("fine-tuning", "grpo"):
        for cls in kinds(purpose).values():  # type: ignore[arg-type]
            found += numbers(cls, "", seen)
    assert len(found) > 60
    assert {where for where, metadata in found if not (
        flat(metadata) & {"Gt", "Ge"} and flat(metadata) & {"Lt", "Le"})} == {
            "ChatTemplate.options"}  # which mean something to the template alone


@pytest.mark.parametrize(("change", "words"), [
    ({"training": {"epochs": 1e30}}, ["'training.epochs'", "integer"]),
    ({"training": {"epochs": 10**15}}, ["'training.epochs'", "less than or equal to 1000"]),
    ({"training": {"learning_rate": 1e9}}, ["'training.learning_rate'", "10"]),
    ({"seeds": [-1]}, ["'seeds.0'", "greater than or equal to 0"]),
    ({"seeds": [2**40]}, ["'seeds.0'", "less than"]),
    ({"model": {"hidden": 63}}, ["'model.hidden'", "multiple of 8"]),
    ({"model": {"hidden": 60}}, ["'model.hidden'", "multiple of 8"]),
    ({"probe": {"layers": [2, 999]}}, ["'probe.layers'", "999", "tiny-4x64 has 4"]),
    ({"evaluation": {"projection_layer": 5}}, ["'evaluation.projection_layer'", "layer 5", "has 4"]),
    ({"methods": [{"name": "pv", "defenses": [{"kind": "persona_vector", "layer": 5}]}]}, ["persona_vector", "'pv'"]),
    ({"methods": [{"name": "l", "defenses": [{"kind": "ldifs", "layers": [4, 5]}]}]}, ["ldifs", "'l'", "layer 5"]),
    ({"methods": [{"name": "l", "defenses": [{"kind": "ldifs", "every": 5}]}]},
     ["ldifs", "'l'", "none of the 4 layers", "plain fine-tuning"]),
    ({"grpo": {"methods": [{"name": "p", "defenses": [{"kind": "persona_vector"}]}]}}, ["persona_vector", "layer 20"]),
    ({"model": {"kind": "hub", "repo": "Qwen/Qwen2.5-7B-Instruct", "revision": "main"}, "probe": {"layers": [29]}},
     ["layer 29", "has 28"]),
    ({"slice_by": ["seed", "seed"]}, ["'slice_by'", "more than once: seed"]),
    ({"grpo": {"slice_by": ["method", "method"]}}, ["'grpo.slice_by'", "more than once: method"]),
    ({"probe": {"strengths": [1.0, 1.0]}}, ["'probe.strengths'", "more than once"]),
    ({"methods": [{"name": "kl", "defenses": [{"kind": "kl"}], "sweep": [0.1, 0.10000001]}]}, ["more than once: 0.1"]),
    ({"pool": {"source": "demo/nothing.jsonl"}}, ["'pool.source'", "demo/nothing.jsonl"]),
    ({"evaluation": {"general": "/no/such.yaml"}}, ["'evaluation.general'", "/no/such.yaml"]),
    ({"evaluation": {"sets": {"more": {"source": "demo/nothing.jsonl"}}}}, ["'evaluation.sets.more.source'"]),
    ({"title": "two\nlines"}, ["'title'"]),
    ({"trait": "x" * 5000 + ".yaml"}, ["'trait'", "which does not exist"]),
    ({"pool": {"source": "a\0.jsonl"}}, ["'pool.source'", "which does not exist"]),
])
def test_an_absurd_value_is_refused_when_the_profile_is_loaded(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ProfileError) as caught:
        validated(merged(change), "mine.yaml")
    for word in ["mine.yaml: ", *words]:
        assert word in str(caught.value)


def test_the_layers_of_a_folder_are_read_from_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 6}}))
    folder = {"model": {"kind": "folder", "path": str(tmp_path)}}
    assert validated(merged(folder | {"probe": {"layers": [6]}}), "mine.yaml").probe.layers == (6,)
    with pytest.raises(ProfileError, match=r"layer 7, but the model .* has 6"):
        validated(merged(folder | {"probe": {"layers": [7]}}), "mine.yaml")
    (tmp_path / "config.json").write_text("[" * 100_000)  # whoever loads the model will tell
    assert validated(merged(folder | {"probe": {"layers": [7]}}), "mine.yaml").probe.layers == (7,)


def test_set_is_read_as_strictly_as_a_file(tmp_path: Path) -> None:
    for value in ("[!!int abc]", "9" * 5000, ".nan", "[" * 50 + "1" + "]" * 50):
        with pytest.raises(ProfileError, match=r"^SET, 'seeds' is .*line 1: "):
            overridden("tiny", f"seeds={value}")
