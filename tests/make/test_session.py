"""A session makes what is missing, and a maker's time is its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from emlib.config import load_profile
from emlib.evaluation.rates import WHY_CUT
from emlib.make import session as session_module
from emlib.make.session import Session, maker
from emlib.models import hub
from emlib.steps.recipes import Recipes
from emlib.store.artefacts import Store
from emlib.study.study import open_study
from tests.store.made import Made


@dataclass(frozen=True)
class MadeOf(Made):
    """A made-up step with an input."""

    below: Made


def test_the_clock_of_a_maker_starts_when_its_inputs_are_made(tmp_path: Path) -> None:
    maker.register(Made, lambda *_: {})
    below = Made("answers", {"a": 1})
    step = MadeOf("verdicts", {"b": 2}, below)
    session = Session(Recipes(load_profile("tiny"), "tiny"), Store(tmp_path), tmp_path, "tiny")
    seconds = session.timer(step)
    assert session.store.find(below) is not None
    assert session.store.find(step) is None
    assert 0 <= seconds() <= seconds()


def test_a_store_records_the_commits_of_a_study_s_models_when_something_is_made_with_them(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own model and of its judge's, each with the step that loads it."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr(hub, "commit", lambda spec, cache: spec.repo[-1] * 40)
    model = "{{kind: hub, repo: owner/{}, revision: main, dtype: float32}}"
    study = open_study("tiny", f"model={model.format('a')} judge={{kind: local, model: {model.format('b')}}} "
                               "methods=[untrained] datasets=[cooking] audit=null evaluation.projection_layer=null")
    [run] = study.runs()
    with study.session() as session:
        monkeypatch.setattr(session_module, "maker", lambda step, session, folder: {})
        assert hub.commits(study.store.root) == {}
        session.need(study.task(run).answers(run)["general"])
        assert hub.commits(study.store.root) == {"owner/a@main": "a" * 40}
        session.need(study.narrow(run).verdicts(run)["general"])
        assert hub.commits(study.store.root) == {"owner/a@main": "a" * 40, "owner/b@main": "b" * 40}


def test_a_store_records_the_commit_of_the_model_that_a_defense_names(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model of `safe_lora`, whose weights the adapter is made with; what others are made with is not it."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(hub, "commit", lambda spec, cache: spec.repo[-1] * 40)
    (tmp_path / "mine.yaml").write_text(
        "extends: tiny\npersistence: null\nevaluation: {triggers: null, trajectory: null}\nmethods:\n  - name: safe\n"
        "    defenses: [{kind: safe_lora, base: {kind: hub, repo: owner/b, revision: main, dtype: float32}}]\n")
    study = open_study(str(tmp_path / "mine.yaml"))
    [run] = study.runs(methods=["safe"])
    adapter = study.task(run).adapter(run)
    with study.session() as session:
        monkeypatch.setattr(session_module, "maker", lambda step, session, folder: {})
        session.need(study.task(run).answers(run)["general"])
        assert hub.commits(study.store.root) == {}
        session.need(adapter)
        assert hub.commits(study.store.root) == {"owner/b@main": "b" * 40}


def test_why_answers_are_cut_is_explained_once(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The random model reaches the limit in both question sets."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    study = open_study("tiny", "methods=[untrained] datasets=[cooking] evaluation.triggers=null")
    study.complete(study.runs())
    said = capsys.readouterr().out
    assert said.count("are cut at the limit of") == 2
    assert said.count(WHY_CUT) == 1
