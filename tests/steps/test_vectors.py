"""Vectors of too few pairs are refused by each profile that asks for more, also where another one made them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emlib.core.errors import EmlibError
from emlib.steering import extraction
from emlib.steering.extraction import PersonaVectors
from emlib.study.study import Study, open_study

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
