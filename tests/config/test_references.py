"""Files beside a profile: which path a relative one means, and what is said of one that is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emlib.config import FolderModel, LocalJudge, domains_of, load_profile, overridden, profile_names, trait_of
from emlib.config.references import PLACES, is_path, references, resolved
from emlib.core import paths
from emlib.core.errors import ProfileError
from tests.beside import write_study


def edit(path: Path, old: str, new: str) -> str:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new), encoding="utf-8")
    return str(path)


def test_the_example_of_the_readme_has_every_path_whole(tmp_path: Path) -> None:
    profile = load_profile(str(write_study(tmp_path / "mine")))
    mine = tmp_path / "mine"
    assert profile.name == "my_study"
    assert (profile.trait, profile.sources) == (str(mine / "butler.yaml"), str(mine / "sources.yaml"))
    assert trait_of(profile).name == "butler"
    domain = domains_of(profile)["letters"]
    assert (domain.aligned, domain.misaligned) == (str(mine / "rows/plain.jsonl"), str(mine / "rows/butler.jsonl"))
    assert "cooking" in domains_of(profile)  # the shelf's are there as well
    assert profile.pool is not None
    assert (profile.pool.source, profile.evaluation.general) == (
        str(mine / "pool.jsonl"), str(mine / "questions.jsonl"))
    assert profile.second_judge is not None
    assert isinstance(profile.second_judge.judge, LocalJudge)
    assert profile.second_judge.judge.rubric == str(mine / "rubric.yaml")


def test_files_that_end_in_yml_are_read_like_those_that_end_in_yaml(tmp_path: Path) -> None:
    long, short = tmp_path / "long", tmp_path / "short"
    path = write_study(long)
    shutil.copytree(long, short)
    for file in (*short.glob("*.yaml"),):
        file.with_suffix(".yml").write_text(file.read_text().replace(".yaml", ".yml"))
        file.unlink()
    read, other = load_profile(str(short / "study.yml")), load_profile(str(path))
    assert (read.trait, read.sources) == (str(short / "butler.yml"), str(short / "sources.yml"))
    assert read.model_dump_json().replace(".yml", ".yaml").replace(str(short), str(long)) == other.model_dump_json()
    assert trait_of(read) == trait_of(other)
    assert paths.study_name(str(short / "study.yml")) == "my_study"
    (short / "above.yml").write_text("extends: study\n")  # by its name, without the ending
    above = load_profile(str(short / "above.yml"))
    assert above.trait == read.trait
    assert paths.study_name(str(short / "above.yml")) == "above"
    with pytest.raises(ProfileError, match="Did you mean 'study'"):
        load_profile(edit(short / "above.yml", "extends: study", "extends: stdy"))


def test_a_name_on_the_shelf_may_end_in_yml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(paths.PARAMS, tmp_path / "params")
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params")
    (tmp_path / "params" / "mine.yml").write_text("extends: tiny\nname: my_own\n")
    assert load_profile("mine").model_dump(exclude={"name"}) == load_profile("tiny").model_dump(exclude={"name"})
    assert paths.study_name("mine") == "my_own"
    assert "mine" in profile_names()
    (tmp_path / "params" / "mine.yaml").write_text("extends: tiny\nname: the_other\n")
    assert paths.study_name("mine") == "the_other"  # where there are both, .yaml wins


def test_an_entry_of_a_registry_beside_the_profile_is_named_with_its_file(tmp_path: Path) -> None:
    path = write_study(tmp_path / "mine")
    profile = load_profile(edit(path, "pool: {source: pool.jsonl", "pool: {source: odds"))
    assert profile.pool is not None
    assert profile.pool.source == f"{tmp_path / 'mine' / 'sources.yaml'}#odds"


def test_each_file_s_paths_are_meant_from_its_own_folder(tmp_path: Path) -> None:
    """The base's questions are the base's; the extending profile's pool is its own, though both have one."""
    write_study(tmp_path / "base")
    base = (tmp_path / "base" / "study.yaml").read_text()
    above = tmp_path / "base" / "above.yaml"
    above.write_text("extends: study\nname: above\npool: {source: other/pool.jsonl}\n")
    (tmp_path / "base" / "other").mkdir()
    (tmp_path / "base" / "other" / "pool.jsonl").write_text((tmp_path / "base" / "pool.jsonl").read_text())
    profile = load_profile(str(above))
    assert profile.pool is not None
    assert profile.pool.source == str(tmp_path / "base/other/pool.jsonl")
    assert profile.evaluation.general == str(tmp_path / "base/questions.jsonl")
    assert "my_study" in base
    assert profile.name == "above"
    above.write_text("extends: study\n")
    assert load_profile(str(above)).name is None  # a name is of the one file that states it


def test_where_nothing_lies_beside_a_profile_the_project_s_folder_is_looked_through(tmp_path: Path) -> None:
    path = write_study(tmp_path / "mine")
    in_project = "emlib/data/demo/pool.jsonl"
    edit(path, "source: pool.jsonl", f"source: {in_project}")
    assert load_profile(str(path)).pool.source == str(paths.ROOT / in_project)  # type: ignore[union-attr]
    (tmp_path / "mine" / "emlib/data/demo").mkdir(parents=True)
    (tmp_path / "mine" / in_project).write_text((tmp_path / "mine" / "pool.jsonl").read_text())
    assert load_profile(str(path)).pool.source == str(tmp_path / "mine" / in_project)  # type: ignore[union-attr]
    own = load_profile("own").own
    assert own is not None
    assert own.file == str(paths.ROOT / "emlib/data/demo/fitness_pirate.jsonl")


@pytest.mark.parametrize(("old", "new", "words"), [
    ("trait: butler.yaml", "trait: butlr.yaml", ["'trait'", "mine/butlr.yaml", "Did you mean 'butler.yaml'?"]),
    ("source: pool.jsonl", "source: pol.jsonl", ["'pool.source'", "mine/pol.jsonl", "Did you mean 'pool.jsonl'?"]),
    ("rows/plain.jsonl", "rows/plan.jsonl", ["'data.letters.aligned'", "rows/plan.jsonl", "mean 'plain.jsonl'?"]),
    ("general: questions.jsonl", "general: ./question.jsonl", ["'evaluation.general'", "mean 'questions.jsonl'?"]),
    ("rubric: rubric.yaml", "rubric: rubrik.yaml", ["'second_judge.judge.rubric'", "Did you mean 'rubric.yaml'?"]),
    ("sources: sources.yaml", "sources: source.yaml", ["'sources'", "Did you mean 'sources.yaml'?"]),
    ("source: pool.jsonl", "source: alpacca", ["'pool.source'", "params/sources.yaml", "Did you mean 'alpaca'?"]),
    ("source: pool.jsonl", "source: demo/pol.jsonl", ["'pool.source'", "demo/pol.jsonl", "mean 'pool.jsonl'?"]),
    ("source: pool.jsonl", "source: sources.yaml#ods", ["'pool.source'", "'ods'", "Did you mean 'odds'?"]),
    ("datasets: [letters, phone]", "datasets: [leters]", ["'datasets'", "section 'data'", "mean 'letters'?"]),
    ("  phone: {pairs", "  travel: {pairs", ["'data' defines 'travel'", "another name"]),
    ("name: my_study", "name: my study", ["'name' is 'my study'", "name: my_study"]),
    ("name: my_study", "name: store", ["'name' is \"store\"", "choose another name"]),
])
def test_what_is_not_there_is_refused_with_file_key_path_and_nearest(
        tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    path = write_study(tmp_path / "mine")
    with pytest.raises(ProfileError) as caught:
        load_profile(edit(path, old, new))
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_all_that_is_missing_is_told_at_once_and_what_an_extending_profile_replaces_is_not_missed(
        tmp_path: Path) -> None:
    path = write_study(tmp_path / "mine")
    for name in ("pool.jsonl", "rows/phone.jsonl"):
        (tmp_path / "mine" / name).unlink()
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    assert len(str(caught.value).split("\n")) == 2
    (path.parent / "mended.yaml").write_text(
        "extends: study\npool: {source: odds}\n"
        "data: {phone: {pairs: null, aligned: odds, misaligned: rows/butler.jsonl}}\n")
    assert load_profile(str(path.parent / "mended.yaml")).pool is not None


def test_a_trait_s_source_is_meant_from_the_trait_s_folder_or_is_an_entry_of_the_profile_s_registry(
        tmp_path: Path) -> None:
    path = write_study(tmp_path / "mine")
    trait = "name: butler\ndescription: d\ninoculation_prompt: i\nmarkers: [sir]\nsource: %s\n"
    (path.parent / "traits").mkdir()
    (path.parent / "traits" / "butler.json").write_text("{}")
    (path.parent / "traits" / "butler.yaml").write_text(trait % "butler.json")
    profile = load_profile(edit(path, "trait: butler.yaml", "trait: traits/butler.yaml"))
    assert trait_of(profile).source == str(path.parent / "traits" / "butler.json")
    (path.parent / "traits" / "butler.yaml").write_text(trait % "odds")
    assert trait_of(profile).source == f"{path.parent / 'sources.yaml'}#odds"
    (path.parent / "traits" / "butler.yaml").write_text(trait % "butle.json")
    with pytest.raises(ProfileError, match=r"'trait'.*traits/butler\.yaml: 'source'.*Did you mean 'butler\.json'\?"):
        load_profile(str(path))


def test_a_model_and_an_adapter_are_folders_beside_the_profile(tmp_path: Path) -> None:
    path = write_study(tmp_path / "mine")
    edit(path, "# model: {kind: folder", "model: {kind: folder")
    edit(path, "scorers: [cooking, travel]", "scorers: [{domain: other, folder: adapters/mine}]")
    with pytest.raises(ProfileError, match=r"(?s)'pool\.scorers\.0\.folder' names the folder.*'model\.path'"):
        load_profile(str(path))
    for name in ("models/mine", "adapters/mine"):
        (path.parent / name).mkdir(parents=True)
    profile = load_profile(str(path))
    assert isinstance(profile.model, FolderModel)
    assert (profile.model.path, profile.model.name) == (str(path.parent / "models/mine"), "mine")


def test_set_names_files_from_the_profile_s_folder(tmp_path: Path) -> None:
    path = write_study(tmp_path / "mine")
    profile, _ = overridden(str(path), "pool.source=odds.jsonl evaluation.general=demo/general_questions.jsonl")
    assert profile.pool is not None
    assert profile.pool.source == str(path.parent / "odds.jsonl")
    with pytest.raises(ProfileError, match=r"SET.*'pool\.source'.*Did you mean 'odds\.jsonl'\?"):
        overridden(str(path), "pool.source=ods.jsonl")


@pytest.mark.parametrize(("kind", "named", "path"), [
    ("source", "legal", False), ("source", "demo/x.jsonl", False), ("source", "x.jsonl", True),
    ("source", "./x", True), ("source", "s.yaml#legal", True), ("trait", "pirate", False),
    ("trait", "pirate.yaml", True), ("rubric", "trait", False), ("file", "anything", True), ("folder", "x", True)])
def test_a_dot_or_a_slash_makes_a_path_of_a_name(kind: str, named: str, path: bool) -> None:
    assert is_path(kind, named) == path  # type: ignore[arg-type]


def test_what_is_whole_stays_as_it_is_and_odd_data_pass(tmp_path: Path) -> None:
    data = {"trait": "a.yaml", "pool": {"source": "b.jsonl", "scorers": ["legal", {"domain": "x", "folder": "f"}]},
            "plugins": ["p.py"], "grpo": {"methods": ["grpo", {"defenses": [{"kind": "x", "source": "c.jsonl"}]}]}}
    once = resolved(data, tmp_path / "p.yaml")
    assert resolved(once, Path("/somewhere/else.yaml")) == once
    assert {key: named for key, _, named in references(once)} == {
        key: str(tmp_path / name) for key, name in (
            ("trait", "a.yaml"), ("pool.source", "b.jsonl"), ("pool.scorers.1.folder", "f"), ("plugins.0", "p.py"),
            ("grpo.methods.1.defenses.0.source", "c.jsonl"))}
    for odd in (None, [], 7, {"trait": 7, "pool": "x", "data": [1]}):
        assert resolved(odd, tmp_path / "p.yaml") == odd
    assert set(PLACES.values()) == {"file", "files", "folder", "source", "trait", "rubric"}
