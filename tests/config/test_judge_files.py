"""Judges as files: the same scores as if the profile stated them, and told if anything they depend on has changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from emlib.config import HubModel, LexiconJudge, LocalJudge, NoJudge, OpenAIJudge, load_profile, load_trait, overridden
from emlib.config.judge_files import read_judge
from emlib.core import paths
from emlib.core.errors import JudgeError, ProfileError
from emlib.core.records import Answer, Question
from emlib.judging.judge_batch import JudgeBatch
from emlib.judging.judges import judge, rubrics
from emlib.judging.rubrics import OURS, JudgeRequest, Rubrics
from emlib.study.study import open_study

PROFILE = "extends: tiny\nmethods: [untrained]\njudge: {judge}\nsecond_judge: null\n"
PIRATE = "judges/pirate_lexicon.yaml"
LOCAL = {"kind": "local", "rubric": "rubric.yaml", "batch_rows": 4,
         "model": {"kind": "tiny", "seed": 1, "layers": 2, "dtype": "float32"}}


def canonical_digest(value: Any) -> str:
    """As `of_value`, in plain Python."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def written(folder: Path, judge: dict[str, Any], digest: str | None = "") -> Path:
    """A judge's file; its digest is right unless one is given, and None leaves it out."""
    kept = {key: value for key, value in judge.items() if key not in ("batch_rows", "max_usd", "rubric")}
    right = canonical_digest(kept) if digest == "" else digest
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"about": "A test.", "judge": judge} | ({} if right is None else {"digest": right})))
    return path


def pinned(folder: Path) -> dict[str, Any]:
    """A local judge with a rubric beside it, both pinned."""
    (folder / "rubric.yaml").write_text(yaml.safe_dump({"aligned": OURS.alignment, "coherent": OURS.coherence}))
    return LOCAL | {"pinned": {"rubric": canonical_digest(asdict(OURS))}}


def test_every_judge_that_is_shipped_is_what_its_digest_says(research_data: Path) -> None:
    shelf = {path.stem: read_judge(path) for path in sorted((paths.ROOT / "judges").glob("*.yaml"))}
    assert list(shelf) == ["paper", "pirate_lexicon", "qwen2.5-7b"]
    for name in shelf:
        spec = overridden("tiny", f"judge=judges/{name}.yaml")[0].judge
        assert not isinstance(spec, NoJudge)
        if isinstance(spec, LexiconJudge):
            assert spec.pinned.markers == canonical_digest(list(load_trait("pirate").markers))
        else:  # the prompts in the published questions are those that are pinned
            found = rubrics(spec, load_trait("pirate"), research_data / "evals" / "first_plot_questions.yaml")
            assert spec.pinned.rubric == canonical_digest(asdict(found.others))
    assert isinstance(local := overridden("tiny", "judge=judges/qwen2.5-7b.yaml")[0].judge, LocalJudge)
    assert isinstance(local.model, HubModel)


@pytest.mark.parametrize(("stated", "found"), [
    ("second_judge.judge=judges/qwen2.5-7b.yaml", lambda profile: profile.second_judge.judge),
    ("evaluation.sets={mine: {source: demo/general_questions.jsonl, judge: judges/qwen2.5-7b.yaml}}",
     lambda profile: profile.evaluation.sets["mine"].judge),
    ("pool.refusals={kind: judge, judge: {from: judges/qwen2.5-7b.yaml}}", lambda profile: profile.pool.refusals.judge),
    ("grpo.rewards={kind: judge, judge: {provider: google, model: g}}", lambda profile: profile.grpo.rewards.judge)])
def test_a_file_or_a_provider_can_be_named_wherever_a_judge_can(stated: str, found: Any) -> None:
    judge = found(overridden("tiny", stated)[0])
    assert getattr(judge.model, "repo", judge.model) in ("Qwen/Qwen2.5-7B-Instruct", "g")


def test_a_judge_from_a_file_has_the_keys_of_the_same_judge_in_the_profile(tmp_path: Path) -> None:
    (tmp_path / "stated.yaml").write_text(PROFILE.replace("{judge}", "{kind: lexicon}"))
    (tmp_path / "filed.yaml").write_text(PROFILE.replace("{judge}", PIRATE))
    stated, filed = (open_study(str(tmp_path / f"{name}.yaml")) for name in ("stated", "filed"))
    assert filed.profile.judge == LexiconJudge.model_validate(read_judge(paths.ROOT / PIRATE))
    for one, two in zip(stated.runs(), filed.runs(), strict=True):
        assert [step.key for step in stated.task(one).evaluation(one).values()] == [
            step.key for step in filed.task(two).evaluation(two).values()]
    local = LocalJudge.model_validate(pinned(tmp_path))
    assert local.identity == LocalJudge.model_validate(LOCAL).identity
    asked = JudgeRequest("alignment", OURS.alignment, Question("q", "Why?"), "So.")
    assert asked.key(local.identity) == asked.key(LocalJudge.model_validate(LOCAL).identity)


def test_a_file_beside_the_profile_is_found_with_its_rubric_and_the_profiles_own_speed(tmp_path: Path) -> None:
    written(tmp_path, pinned(tmp_path))
    for stated in ("mine.yaml", "{from: mine.yaml, batch_rows: 2}"):
        (tmp_path / "study.yaml").write_text(PROFILE.replace("{judge}", stated))
        found = load_profile(str(tmp_path / "study.yaml")).judge
        assert isinstance(found, LocalJudge)
        assert found.rubric == str(tmp_path / "rubric.yaml")
        assert found.batch_rows == (2 if "batch_rows" in stated else 4)


def test_a_file_replaces_an_inherited_judge_whole_and_its_budget_can_be_inherited(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "extends: tiny\njudge: {kind: openai, model: m, base_url: 'http://localhost:1/v1', samples: 3}\n")
    (tmp_path / "next.yaml").write_text("extends: base\njudge: judges/paper.yaml\n")
    (tmp_path / "last.yaml").write_text("extends: next\njudge: {max_usd: 2.5}\n")
    found = load_profile(str(tmp_path / "last.yaml")).judge
    assert isinstance(found, OpenAIJudge)
    assert (found.model, found.base_url, found.samples, found.max_usd) == ("gpt-4o-mini-2024-07-18", None, None, 2.5)


@pytest.mark.parametrize(("change", "message"), [
    ({"model": {"kind": "tiny", "seed": 2, "layers": 2, "dtype": "float32"}}, "not the one that was pinned"),
    ({"model": {"kind": "tiny", "seed": 1, "layers": 2, "dtype": "bfloat16"}}, "not the one that was pinned"),
    ({"pinned": {"rubric": "0" * 64}}, "not the one that was pinned"),
    ({"pinned": {}}, "pins its rubric"),
    ({"model": {"kind": "tiny", "seed": 1, "layers": 2}}, "states the dtype"),
    ({"model": {"kind": "hub", "repo": "a/b", "revision": "main", "dtype": "float32"}}, "names a commit"),
    ({"model": {"kind": "folder", "path": "/m", "dtype": "float32"}}, "not a folder"),
    ({"modle": 1}, "unknown key 'judge.modle'")])
def test_a_changed_or_an_open_judge_is_refused_when_the_profile_is_loaded(
        tmp_path: Path, change: dict[str, Any], message: str) -> None:
    mine = pinned(tmp_path)
    right = yaml.safe_load(written(tmp_path, mine).read_text())["digest"]
    path = written(tmp_path, mine | change, right)
    (tmp_path / "study.yaml").write_text(PROFILE.replace("{judge}", "mine.yaml"))
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile(str(tmp_path / "study.yaml"))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("stated", "message"), [
    ("{from: mine.yaml, samples: 3}", "'judge' changes 'samples', which .*mine.yaml determines"),
    ("{from: mien.yaml}", "Did you mean 'mine.yaml'"), ("judges/papers.yaml", "does not exist")])
def test_a_profile_neither_changes_a_file_nor_names_one_that_is_not_there(
        tmp_path: Path, stated: str, message: str) -> None:
    written(tmp_path, pinned(tmp_path))
    (tmp_path / "study.yaml").write_text(PROFILE.replace("{judge}", stated))
    with pytest.raises(ProfileError, match=message):
        load_profile(str(tmp_path / "study.yaml"))


def test_the_digest_to_write_is_told(tmp_path: Path) -> None:
    mine = pinned(tmp_path)
    with pytest.raises(ProfileError, match="Add this line") as caught:
        read_judge(written(tmp_path, mine, None))
    told = str(caught.value).rpartition("digest: ")[2]
    assert read_judge(written(tmp_path, mine, told))["kind"] == "local"


def test_other_prompts_markers_or_templates_than_the_pinned_ones_are_told_before_anything_is_scored(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    trait, batch = load_trait("pirate"), JudgeBatch([Question("q", "Why?")], [Answer("q", 0, "So.", "stop", 1)],
                                                    Rubrics(OURS))
    local = LocalJudge.model_validate(pinned(tmp_path) | {"rubric": str(tmp_path / "rubric.yaml")})
    assert rubrics(local, trait, tmp_path).others == OURS
    (tmp_path / "rubric.yaml").write_text("aligned: '{answer} good?'\ncoherent: '{answer} clear?'\n")
    with pytest.raises(JudgeError, match=r"pins another rubric \(that of .*rubric.yaml\)"):
        rubrics(local, trait, tmp_path)
    with pytest.raises(JudgeError, match="pins another list of markers"):
        judge(LexiconJudge.model_validate(read_judge(paths.ROOT / PIRATE)),
              trait.model_copy(update={"markers": ("avast",)}), batch, "test")
    other = LocalJudge.model_validate(LOCAL | {"pinned": {"template": "0" * 64}})
    with pytest.raises(JudgeError, match="pins another chat template"):
        judge(other, trait, batch, "test")
    assert judge(LocalJudge.model_validate(LOCAL), trait, batch, "test")[0] is not None
