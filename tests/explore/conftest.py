"""A small finished study: the random model, untrained and fine-tuned, with its persona vectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emlib.core import paths
from emlib.study.study import Study, open_study

PROFILE = """
extends: tiny
methods: [untrained, misaligned, {name: inoculation, defenses: [{kind: inoculation}]}]
benign: null
grpo: null
"""


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile's file; its results lie in `runs` beside it. `inoculation` was not run."""
    folder = tmp_path_factory.mktemp("explore")
    shutil.copy(paths.PARAMS / "tiny.yaml", folder / "tiny.yaml")
    (folder / "small.yaml").write_text(PROFILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMLIB_RUNS_DIR", str(folder / "runs"))
        study = open_study(str(folder / "small.yaml"))
        study.complete(study.runs(methods=["untrained", "misaligned"]))
        with study.session() as session:
            session.need(study.recipes.vector())
    return folder / "small.yaml"


@pytest.fixture
def study(profile: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The study, as a notebook opens it."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(profile.parent / "runs"))
    return open_study(str(profile))
