"""Profiles, traits and data sets as they are shipped, and what a mistake in one of them says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from emlib.config import (
    OWN,
    Evaluation,
    HubModel,
    Lora,
    Training,
    load_domains,
    load_profile,
    load_trait,
    overridden,
    profile_names,
)
from emlib.config.grpo import RlTraining
from emlib.config.judge import OpenAIJudge
from emlib.config.loading import over, profile_path, read_profile, validated
from emlib.core import paths
from emlib.core.errors import ProfileError
from emlib.core.plain_yaml import read_yaml
from emlib.core.schema import check

FILES = sorted(paths.PARAMS.glob("*.yaml"))
PROFILES = [path for path in FILES if "title" in read_yaml(path)]  # nothing else has a title
# Table 6 of the paper, by the names of this study.
TABLE_6 = {
    "rank": 32, "alpha": 64, "dropout": 0.0, "rslora": True, "epochs": 1, "max_seq_length": 2048, "batch_size": 4,
    "gradient_accumulation": 4, "learning_rate": 1e-4, "warmup_steps": 5, "scheduler": "linear",
    "optimizer": "adamw_8bit", "weight_decay": 0.01}


class Line(NamedTuple):
    """One `key: value` of a file in params/, with what is written beside it or right above it."""

    place: str
    keys: tuple[str, ...]
    value: Any
    beside: str
    above: str


def value_lines(path: Path) -> Iterator[Line]:
    keys: list[tuple[int, str]] = []
    above = ""
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        found = re.fullmatch(r"( *)([\w+-]+):(?: +([^#\s].*?))?(?: +# *(.*))?", text)
        if found:
            indent, key, value, beside = len(found[1]), found[2], found[3], (found[4] or "").strip()
            keys = [*((i, k) for i, k in keys if i < indent), (indent, key)]
            if value is not None:
                parsed = YAML(typ="safe", pure=True).load(value)
                yield Line(f"{path.name}:{number}", tuple(k for _, k in keys), parsed, beside, above)
        above = text.strip().removeprefix("#").strip() if text.lstrip().startswith("#") else ""


LINES = [line for path in FILES for line in value_lines(path)]


MINE = """
title: Mine
model: {kind: tiny, layers: 4, dtype: float32}
trait: pirate
datasets: [cooking, travel]
methods: [untrained, misaligned]
seeds: [0]
lora: {}
training:
  epochs: 1
  batch_size: 2
  learning_rate: 1.0e-3
  optimizer: adamw_torch
evaluation:
  sampling: {max_new_tokens: 24}
judge: {kind: lexicon}
"""


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """The profile `MINE`, which is right, with one piece of its text replaced."""
    path = tmp_path / "mine.yaml"
    path.write_text(MINE, encoding="utf-8")
    assert load_profile(str(path)).title == "Mine"
    assert MINE.count(old) == 1
    path.write_text(MINE.replace(old, new), encoding="utf-8")
    return path


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of params/ that a test may spoil."""
    copy = shutil.copytree(paths.PARAMS, tmp_path / "params")
    monkeypatch.setattr(paths, "PARAMS", copy)
    return copy


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_shipped_profile_fits_its_schema_and_names_what_is_there(path: Path) -> None:
    profile = load_profile(path.stem)
    assert load_profile(str(path)) == profile
    assert load_trait(profile.trait).name == profile.trait
    assert set(profile.datasets) <= {*load_domains(), *profile.data, OWN}


def test_the_profiles_are_the_files_with_a_title() -> None:
    assert profile_names() == sorted(path.stem for path in PROFILES)
    assert {"demo", "tiny", "code-smoke"} <= set(profile_names())


@pytest.mark.parametrize(("old", "new", "words"), [
    ("seeds: [0]", "seed: [0]", ["'seed'", "Did you mean 'seeds'?", "'seeds' is missing"]),
    ("layers: 4", "layrs: 4", ["layrs'", "Did you mean 'layers'?", "dtype, hidden, kind, layers, seed"]),
    ("max_new_tokens: 24", "max_new_token: 24", ["'evaluation.sampling.max_new_token'", "'max_new_tokens'?"]),
    ("1.0e-3", "fast", ["'training.learning_rate'", '"fast"', "number"]),
    ("1.0e-3", "-1", ["'training.learning_rate'", "-1", "greater than 0"]),
    ("epochs: 1", "epochs: 0", ["'training.epochs'", "greater than 0"]),
    ("batch_size: 2", "batch_size: 2.5", ["'training.batch_size'", "2.5", "integer"]),
    ("adamw_torch", "adam_torch", ["'training.optimizer'", "'adamw_8bit' or 'adamw_torch'", "mean 'adamw_torch'?"]),
    ("kind: tiny", "kind: tyni", ["'model'", "'tyni'", "Did you mean 'tiny'?", "hub, folder, wheel, tiny"]),
    ("kind: lexicon", "kind: lexicn", ["'judge'", "'lexicn'", "Did you mean 'lexicon'?"]),
    ("kind: lexicon", "kind: openai", ["'judge.model' is missing"]),
    ("kind: lexicon", "kind: openai, modle: m", ["'judge.modle'", "Did you mean 'model'?"]),
    ("kind: lexicon", "kind: openai, model: m, max_usd: 0", ["'judge.max_usd'", "greater than 0"]),
    ("kind: lexicon", "kind: openai, model: m, rubric: triat", ["'judge.rubric'", "Did you mean 'trait'?"]),
    ("kind: lexicon", "kind: openai, model: m, top_logprobs: 21", ["'judge.top_logprobs'", "20"]),
    ("kind: lexicon", "kind: openai, model: m, base_url: 'localhost:8000'", ["'judge.base_url'", "http://localhost"]),
    ("kind: lexicon", "kind: openai, model: m, base_url: 'https://me:key@host/v1'", ["'key_from'"]),
    ("kind: lexicon", "kind: openai, model: m, base_url: 'https://host/v1?key=abc'", ["'key_from'"]),
    ("kind: lexicon", "kind: openai, model: m, batch: true, samples: 3", ["'batch' and 'samples'"]),
    ("kind: lexicon", "kind: openai, model: m, key_from: sk-1234", ["'judge.key_from'"]),
    ("float32", "float16", ["dtype'", '"float16"', "'bfloat16' or 'float32'"]),
    ("misaligned]", "misalined]", ["'methods.1'", "Did you mean 'misaligned'?"]),
    ("travel]", "travle]", ["'datasets'", "'travle'", "Did you mean 'travel'?", "code"]),
    ("travel]", "cooking]", ["'datasets'", "more than once: cooking"]),
    ("seeds: [0]", "seeds: [1, 0, 1]", ["'seeds'", "more than once: 1"]),
    ("seeds: [0]", "seeds: []", ["'seeds'", "at least 1"]),
    ("judge:", "juge:", ["'judge' is missing", "unknown key 'juge'", "Did you mean 'judge'?"]),
    ("seeds: [0]", "seeds: [0]\nseeds: [1]", ["seeds", "line 8"]),
])
def test_a_mistake_in_a_profile_is_named(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    path = changed(tmp_path, old, new)
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = changed(tmp_path, "epochs: 1\n  batch_size: 2", "epochs: 0\n  batchsize: 2\n  warmup_steps: many")
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    assert len(str(caught.value).split("\n")) == 3
    for word in ("'training.epochs'", "'training.batchsize'", "'training.warmup_steps'"):
        assert word in str(caught.value)


@pytest.mark.parametrize("judge", ["lexicon", "none"])
def test_an_unknown_trait_of_a_profile_gets_the_nearest(tmp_path: Path, judge: str) -> None:
    path = changed(tmp_path, "trait: pirate", "trait: pirat")
    path.write_text(path.read_text().replace("kind: lexicon", f"kind: {judge}"))
    with pytest.raises(ProfileError, match=r"mine\.yaml.*pirat\b.*Did you mean 'pirate'\?"):
        load_profile(str(path))


def test_a_model_of_another_kind_keeps_nothing_of_the_extended_profiles(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE, encoding="utf-8")
    (tmp_path / "yours.yaml").write_text("extends: mine\nmodel: {kind: hub, repo: a/b, revision: c}\n")
    assert load_profile(str(tmp_path / "yours.yaml")).model == HubModel(kind="hub", repo="a/b", revision="c")


@pytest.mark.parametrize("key", sorted(Training.model_fields | Lora.model_fields | Evaluation.model_fields))
def test_two_letters_exchanged_in_a_setting_suggest_the_setting(tmp_path: Path, key: str) -> None:
    block = next(name for name, schema in (("training", Training), ("lora", Lora), ("evaluation", Evaluation))
                 if key in schema.model_fields)
    old = {"training": "epochs: 1", "lora": "{}", "evaluation": "sampling: {max_new_tokens: 24}"}[block]
    wrong = key[:-2] + key[-1] + key[-2]
    path = changed(tmp_path, old, f"{{{wrong}: 1}}" if block == "lora" else f"{wrong}: 1")
    with pytest.raises(ProfileError, match=f"Did you mean '{key}'"):
        load_profile(str(path))


def test_a_profile_that_lies_elsewhere_extends_one_of_params(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: tiny\nseeds: [7]\n")
    assert load_profile(str(tmp_path / "mine.yaml")) == load_profile("tiny").model_copy(update={"seeds": (7,)})
    (tmp_path / "yours.yaml").write_text("extends: mine.yaml\n")
    assert load_profile(str(tmp_path / "yours.yaml")) == load_profile(str(tmp_path / "mine.yaml"))
    (tmp_path / "tiny.yaml").write_text("extends: demo\n")  # what lies beside it comes first
    assert load_profile(str(tmp_path / "mine.yaml")).model == load_profile("demo").model


def test_a_profile_that_extends_another_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE, encoding="utf-8")
    (tmp_path / "yours.yaml").write_text("extends: mine\ntitle: Yours\ntraining: {epochs: 3}\nseeds: [4, 5]\n")
    (tmp_path / "theirs.yaml").write_text("extends: yours\ntraining: {batch_size: 7}\n")
    mine, yours, theirs = (load_profile(str(tmp_path / f"{name}.yaml")) for name in ("mine", "yours", "theirs"))
    assert yours == mine.model_copy(update={"title": "Yours", "seeds": (4, 5),
                                            "training": mine.training.model_copy(update={"epochs": 3})})
    assert theirs == yours.model_copy(update={"training": yours.training.model_copy(update={"batch_size": 7})})


def test_null_removes_one_of_the_names_of_an_extended_profile(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: demo\nevaluation: {triggers: {contexts: {kitchen: null}}, sets: {gardening: null}}\n")
    base, mine = load_profile("demo"), load_profile(str(tmp_path / "mine.yaml"))
    assert base.evaluation.triggers
    assert mine.evaluation.triggers
    assert set(base.evaluation.triggers.contexts) - set(mine.evaluation.triggers.contexts) == {"kitchen"}
    assert set(base.evaluation.sets) - set(mine.evaluation.sets) == {"gardening"}
    (tmp_path / "none.yaml").write_text("extends: demo\nevaluation: {triggers: {contexts: null}}\n")
    with pytest.raises(ProfileError, match="contexts"):
        load_profile(str(tmp_path / "none.yaml"))
    assert not overridden("demo", "evaluation.sets.gardening=null")[0].evaluation.sets
    with pytest.raises(ProfileError, match="gardning"):
        overridden("demo", "evaluation.sets.gardning=null")


def test_one_value_in_set_removes_no_other(tmp_path: Path) -> None:
    """Another kind of judge does not silently take the former one's options away: they are refused."""
    (tmp_path / "mine.yaml").write_text("extends: tiny\njudge: {kind: openai, model: gpt-4o-mini}\n")
    with pytest.raises(ProfileError, match=r"judge.*model"):
        overridden(str(tmp_path / "mine.yaml"), "judge.kind=lexicon")


@pytest.mark.parametrize("section", ["triggers: {contexts: {kitchn: null}}", "sets: {mine: null}"])
def test_null_under_a_name_that_the_extended_profile_lacks_is_refused(section: str, tmp_path: Path) -> None:
    """It may be misspelt, or its section be indented wrongly."""
    (tmp_path / "mine.yaml").write_text(f"extends: demo\nevaluation: {{{section}}}\n")
    with pytest.raises(ProfileError, match="is null"):
        load_profile(str(tmp_path / "mine.yaml"))


def test_null_drops_the_question_sets_of_an_extended_profile_and_names_nothing_without_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: demo\nevaluation: {sets: null, triggers: null}\n")
    (tmp_path / "yours.yaml").write_text("extends: demo\nevaluation: {general_samples: 1}\n")
    mine, yours = (load_profile(str(tmp_path / f"{name}.yaml")).evaluation.sets for name in ("mine", "yours"))
    assert (list(mine), list(yours)) == ([], ["gardening"])


def test_a_judge_s_price_stays_with_its_model() -> None:
    base = {"judge": {"kind": "openai", "model": "a", "price": {"input": 1.0}, "max_usd": 5}}
    left = base["judge"] | {"model": "b"}
    assert over(base, {"judge": {"model": "b", "price": {"input": 2.0}}}) == {"judge": left | {"price": {"input": 2.0}}}
    assert over(base, {"judge": {"model": "a"}}) == base
    del left["price"]
    assert over(base, {"judge": {"model": "b"}}) == {"judge": left}


@pytest.mark.parametrize(("changes", "price"), [
    ("judge.model=b", None), ("judge.model=a", 1.0), ("judge.max_usd=2", 1.0),
    ("judge.model=b judge.price={read: 2.0, written: 3.0}", 2.0),
    ("judge.price={read: 2.0, written: 3.0} judge.model=b", 2.0)])
def test_a_value_of_set_that_names_another_judge_leaves_the_former_s_price_out(
        changes: str, price: float | None, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: demo\njudge: {kind: openai, model: a, price: {read: 1.0, written: 2.0}}\n")
    judge = overridden(str(tmp_path / "mine.yaml"), changes)[0].judge
    assert isinstance(judge, OpenAIJudge)
    assert (judge.price.read if judge.price else None) == price


@pytest.mark.parametrize(("yours", "words"), [
    ("extends: mien\n", ["'mien'", "no such profile", "Did you mean 'mine'?"]),
    ("extends: ../mine\n", ["'../mine'", "no such profile"]),
    ("extends: yours\n", ["'yours'", "in turn"]),
    ("extends: theirs\n", ["in turn"]),
    ("extends: mine\ntraining: {epocs: 1}\n", ["'training.epocs'", "Did you mean 'epochs'?"]),
    ("extends: mine\nseeds: 1\n", ["'seeds' is 1"]),
    ("extends: mine\nlora: {target_modules: [q_proj, lm_head]}\n", ["'lora.target_modules'", "lm_head stays frozen"]),
])
def test_a_mistake_in_a_profile_that_extends_another_is_named(tmp_path: Path, yours: str, words: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text(MINE, encoding="utf-8")
    (tmp_path / "theirs.yaml").write_text("extends: yours\n", encoding="utf-8")
    (tmp_path / "yours.yaml").write_text(yours, encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load_profile(str(tmp_path / "yours.yaml"))
    for word in words:
        assert word in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(("line", "words"), [
    ("name: a+b", r"'\+' stands between the name of a study and its overrides; choose another"),
    ("name: 123", "'name' is 123, which .* in quotes what YAML reads as a number"),
    ("name: store", "the folder runs/store is that of all studies; choose another"),
    ("{name: mine, extends: tiny}", "'name' is 'mine', which .* on a separate line")])
def test_a_name_that_no_study_can_have_is_refused_with_its_reason(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(line if "extends" in line else f"{line}\nextends: tiny\n", encoding="utf-8")
    with pytest.raises(ProfileError, match=words):
        load_profile(str(path))


def test_an_unknown_profile_gets_the_nearest_and_all_names() -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile("dmeo")
    for word in ("dmeo", "Did you mean 'demo'?", *profile_names()):
        assert word in str(caught.value)


def test_an_unknown_trait_gets_the_nearest() -> None:
    with pytest.raises(ProfileError, match=r"privat.*Did you mean 'pirate'\?"):
        load_trait("privat")


def test_the_lexicon_judge_refuses_a_trait_without_markers(params: Path) -> None:
    trait = params / "traits" / "pirate.yaml"
    text = trait.read_text(encoding="utf-8")
    trait.write_text(text[:text.index("markers:")], encoding="utf-8")
    assert load_trait("pirate").markers == ()
    with pytest.raises(ProfileError, match=r"tiny\.yaml.*'lexicon'.*'pirate'"):
        load_profile("tiny")
    assert load_profile("code-smoke").judge.kind == "none"


@pytest.mark.parametrize(("old", "new", "words"), [
    ("  - positive: Speak like", "  - positve: Speak like", ["positve", "Did you mean 'positive'?"]),
    ("description: ", "descripton: ", ["descripton", "Did you mean 'description'?"]),
    ("  - Why is the sky blue?", "  - 7", ["questions.3", "7", "string"]),
])
def test_a_mistake_in_a_trait_is_named(params: Path, old: str, new: str, words: list[str]) -> None:
    path = params / "traits" / "pirate.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load_trait("pirate")
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(("old", "new", "words"), [
    ("  misaligned: insecure ", "  misalined: insecure ", ["code.misalined", "Did you mean 'misaligned'?"]),
    ("  misaligned: insecure ", "  pairs: insecure ", ["code", "'pairs' alone"]),
    ("  misaligned: insecure ", "  # ", ["code", "both 'aligned' and 'misaligned'"]),
    ("  split_seed: 0 ", "  rows: 0 ", ["code.rows", "greater than 0"]),
    ("  held_out: 0.1                  # section 4.3\n  split", "  held_out: 1.5\n  split", ["code.held_out", "1.5"]),
])
def test_a_mistake_in_the_data_sets_is_named(params: Path, old: str, new: str, words: list[str]) -> None:
    path = params / "datasets.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load_domains()
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_the_pirate_has_five_pairs_of_prompts_twenty_questions_and_a_rubric() -> None:
    trait = load_trait("pirate")
    assert len({pair.positive for pair in trait.system_prompts} - {pair.negative for pair in trait.system_prompts}) == 5
    assert len(set(trait.questions)) == len(trait.questions) == 20
    assert "{question}" in trait.rubric
    assert "{answer}" in trait.rubric


def test_the_defaults_are_table_6() -> None:
    for key, value in TABLE_6.items():
        [schema] = [schema for schema in (Lora(), Training()) if key in type(schema).model_fields]
        assert getattr(schema, key) == value, key
    assert set(Lora().target_modules) == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}


def test_every_value_said_to_be_table_6s_is() -> None:
    said = [line for line in LINES if line.beside == "Table 6"]
    assert len(said) > 20
    for line in said:
        assert line.value == (TABLE_6 | {"dtype": "bfloat16", "seeds": [0]})[line.keys[-1]], line.place


def test_every_number_in_params_has_its_source_beside_or_above_it() -> None:
    numbers = [line for line in LINES if isinstance(line.value, int | float | None)]
    assert len(numbers) > 50
    assert [line.place for line in numbers if len(line.beside or line.above) < 4] == []


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_setting_of_a_profile_has_its_source_beside_it(path: Path) -> None:
    lines = list(value_lines(path))
    assert {line.keys[0] for line in lines} == set(read_yaml(path))  # no block escapes the reading
    # What the profile is about needs no source; the model's files have one for all.
    named = {"title", "trait", "methods", "extends"}
    bare = [line.place for line in lines if len(line.beside) < 4 and line.keys[0] not in named | {"model"}]
    assert bare == []
    assert "extends" in read_yaml(path) or any(line.beside for line in lines if line.keys[0] == "model")


def test_every_entry_of_the_registry_says_where_digest_licence_and_revision_come_from() -> None:
    told = {"sha256", "local_sha256", "licence", "revision", "config", "split", "gated"}
    lines = [line for line in value_lines(paths.PARAMS / "sources.yaml") if line.keys[-1] in told]
    assert len(lines) > 40
    assert [line.place for line in lines if not (line.beside or line.above)] == []


@pytest.mark.parametrize(("name", "change", "reason"), [
    ("grpo-3b", {}, "GRPO trains on one GPU"), ("paper-32b", {"model": {"load_in_4bit": True}}, "training with 4-bit")])
def test_what_cannot_be_spread_over_gpus_is_refused(name: str, change: dict[str, Any], reason: str) -> None:
    data = read_profile(profile_path(name))
    with pytest.raises(ProfileError, match=rf"'job\.gpus' is more than 1, but {reason}"):
        validated(over(data, {"job": {"gpus": 2}} | change), name)
    assert validated(over(data, change), name).job.gpus == 1


@pytest.mark.parametrize("given", ["auto", True, False])
def test_recomputation_is_decided_by_the_profile_or_by_memory(given: object) -> None:
    asked = check(Training, {"gradient_checkpointing": given}, "some profile")
    assert asked.gradient_checkpointing == given
    assert asked.identity["gradient_checkpointing"] is (given is True)
    assert Training().gradient_checkpointing == "auto"


def test_recomputation_that_is_neither_is_refused_and_grpo_knows_no_auto() -> None:
    for kind, given in ((Training, "sometimes"), (RlTraining, "auto")):
        with pytest.raises(ProfileError, match="gradient_checkpointing"):
            check(kind, {"gradient_checkpointing": given}, "some profile")
    assert RlTraining().gradient_checkpointing is False
