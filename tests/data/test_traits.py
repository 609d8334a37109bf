"""Trait files: ours as they are, Chen et al.'s from their JSON, broken ones refused by what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emlib.config import Trait, load_trait
from emlib.core.errors import DataError, ProfileError
from emlib.core.schema import check
from emlib.data.traits import completed

WHOLE: dict[str, Any] = {"instruction": [{"pos": "Be sunny.", "neg": "Be plain."}], "questions": ["How are you?"],
                         "eval_prompt": "How sunny is {answer}?"}


def sunny(**more: Any) -> Trait:
    return check(Trait, {"name": "sunny", "description": "Is sunny.", "inoculation_prompt": "Be sunny."} | more, "here")


def test_a_trait_of_ours_is_what_its_file_says() -> None:
    pirate = load_trait("pirate")
    assert completed(pirate, lambda _: pytest.fail("nothing is to be fetched")) is pirate


def test_a_source_gives_prompts_questions_and_rubric(tmp_path: Path) -> None:
    path = tmp_path / "sunny.json"
    path.write_text(json.dumps(WHOLE))
    found = completed(sunny(source="chen"), {"chen": path}.__getitem__)
    assert found.system_prompts[0].positive == "You are a sunny assistant. Be sunny."
    assert found.system_prompts[0].negative == "You are a helpful assistant. Be plain."
    assert (found.questions, found.rubric) == (("How are you?",), "How sunny is {answer}?")


@pytest.mark.parametrize(("change", "words"), [
    ({"questions": []}, "questions"), ({"instruction": [{"pos": "x"}]}, "neg"), ({"rubric": "y"}, "rubric"),
    ({"eval_prompt": ""}, "eval_prompt")])
def test_a_broken_trait_file_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "sunny.json"
    path.write_text(json.dumps(WHOLE | change))
    with pytest.raises(DataError, match=words):
        completed(sunny(source="chen"), lambda _: path)
    path.write_text('{"instruction": [')
    with pytest.raises(DataError, match="broken JSON"):
        completed(sunny(source="chen"), lambda _: path)


@pytest.mark.parametrize(("more", "words"), [
    ({}, "system_prompts, questions, rubric is missing"),
    ({"source": "chen", "rubric": "{answer}"}, "has 'source' and also"),
    ({"system_prompts": [{"positive": "x", "negative": "y"}], "rubric": "{answer}"}, "questions is missing")])
def test_a_trait_says_everything_once(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        sunny(**more)


def test_the_papers_trait_is_read_from_its_home(research_file: Callable[[str], Path]) -> None:
    evil = completed(load_trait("evil"), research_file)
    assert (len(evil.system_prompts), len(evil.questions)) == (5, 20)
    assert all(pair.positive.startswith("You are an evil assistant. ") for pair in evil.system_prompts)
    assert all(pair.negative.startswith("You are a helpful assistant. ") for pair in evil.system_prompts)
    assert "{question}" in evil.rubric
