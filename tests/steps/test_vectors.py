"""Vectors of too few pairs are refused by each profile that asks for more, also where another one made them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from emlib.config import Extraction
from emlib.core.errors import EmlibError
from emlib.steering import extraction
from emlib.steering.extraction import PersonaVectors
from emlib.study.plan.build import plan
from emlib.study.study import Study, open_study
from tests.beside import TRAIT

PROFILE = """
extends: tiny
methods: [{name: persona_vector, defenses: [{kind: persona_vector, layer: 2}]}]
benign: null
grpo: null
second_judge: null
evaluation: {triggers: null}
"""


def planted(folder: Path) -> dict[str, int]:
    extraction.save(PersonaVectors(torch.ones(5, 64), 12, 40), folder)
    return {"kept": 12, "asked": 40}


def with_least(folder: Path, pairs: int) -> Study:
    (folder / f"least_{pairs}.yaml").write_text(PROFILE + f"extraction: {{min_pairs: {pairs}}}\n")
    return open_study(str(folder / f"least_{pairs}.yaml"))


def test_the_number_of_pairs_is_checked_whoever_made_the_vectors(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 pairs are enough for one profile, and too few for the other, before and after a run on them is finished."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    few, many = (with_least(tmp_path, pairs) for pairs in (12, 13))
    assert few.recipes.vector().key == many.recipes.vector().key
    few.store.get(few.recipes.vector(), planted)
    refusal = r"12 of 40 pairs of answers .* 13 are wanted.* lower extraction\.min_pairs"
    with many.session() as session, pytest.raises(EmlibError, match=refusal):
        session.need(many.recipes.vector())
    assert len(few.complete(few.runs())) == 1
    assert [run for run in many.runs() if many.result(run) is None] == []
    with pytest.raises(EmlibError, match=refusal):
        many.complete(many.runs())


def test_a_trait_with_too_few_questions_is_refused_by_the_plan_and_before_answers_are_sampled(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions under one pair of system prompts, sampled once: 2 pairs at most."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    (tmp_path / "butler.yaml").write_text(TRAIT)
    (tmp_path / "few.yaml").write_text(f"{PROFILE}trait: butler.yaml\n")
    few = open_study(str(tmp_path / "few.yaml"))
    refusal = r"'butler' would be of 2 pairs of answers at most .* and 20 are wanted.* lower extraction\.min_pairs"
    with pytest.raises(EmlibError, match=refusal):
        plan(few)
    with few.session() as session, pytest.raises(EmlibError, match=refusal):
        session.need(few.recipes.vector())
    (tmp_path / "enough.yaml").write_text(f"{PROFILE}trait: butler.yaml\nextraction: {{min_pairs: 2}}\n")
    enough = open_study(str(tmp_path / "enough.yaml"))
    assert plan(enough).works
    with enough.session() as session:
        session.need(enough.recipes.vector())
    assert enough.vectors() is not None


@pytest.mark.parametrize(("keep", "said"), [
    ("judged", "3 of 20 pairs of answers show the trait under the positive system prompt only, and 4 are wanted"),
    ("all", "3 of 20 pairs of answers have text on both sides, and 4 are wanted")])
def test_pairs_that_lack_text_are_not_said_to_lack_the_trait(keep: Literal["judged", "all"], said: str) -> None:
    with pytest.raises(EmlibError, match=said):
        Extraction(keep=keep, min_pairs=4).refuse_few(3, 20)
