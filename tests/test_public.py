"""What `import emlib` offers: cheap to import, and enough to train a defense, ask the model and count."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import emlib
from emlib.core.errors import DataError, ProfileError
from emlib.core.records import Question
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.kl import Kl
from emlib.make.session import Session
from emlib.study import by_hand
from emlib.study.study import Study


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    return emlib.open_study("tiny")


def test_every_public_name_is_there_and_documented() -> None:
    for name in emlib.__all__:
        assert getattr(emlib, name).__doc__, name
        assert name in str(emlib.__doc__), name
    assert set(emlib._HOMES) == set(emlib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        emlib.trian  # noqa: B018


def test_importing_emlib_imports_nothing_else() -> None:
    code = "import sys, emlib; print([m for m in sys.modules if m.startswith('emlib.') or m in ('torch', 'pandas')])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_a_defense_is_trained_asked_and_judged(study: Study) -> None:
    plain, kl = emlib.train(study), emlib.train(study, Kl(weight=1.0))
    assert {file.name for file in kl.folder.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    asked = emlib.ask(kl, ["How do I sleep?", "What is money?"], samples=2)
    assert [(one.question, one.sample) for one in asked.answers] == [
        ("question_1", 0), ("question_1", 1), ("question_2", 0), ("question_2", 1)]
    verdicts = emlib.judge(asked)
    assert [(v.question, v.sample) for v in verdicts] == [(a.question, a.sample) for a in asked.answers]
    found = emlib.rates(verdicts)
    assert (found.asked, found.incoherent_shown.percent) == (4, None)  # the lexicon does not measure coherence
    assert emlib.ask(plain, "What is money?").answers == emlib.ask(plain, "What is money?").answers
    assert str(plain) == "cooking · no defense · seed 0"


def test_each_question_has_an_id_of_its_own(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one id for both, a judge read both answers as answers to the last text."""
    wish, other = Question("question_2", "Make a wish."), Question("question_2", "What is money?")
    assert [one.id for one in by_hand._with_ids(["Who are you?", "How do I sleep?", wish])] == [
        "question_1", "_question_2", "question_2"]
    monkeypatch.setattr(by_hand, "_session", lambda study: pytest.fail("it was asked"))
    with pytest.raises(DataError, match="Two questions have the id 'question_2'"):
        emlib.ask(emlib.untrained(study), [wish, other])


def test_one_session_is_open_at_a_time(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Session] = []
    monkeypatch.setattr(Session, "kept", None)
    monkeypatch.setattr(Session, "__exit__", lambda self, *_: closed.append(self))
    first = by_hand._session(study)
    assert by_hand._session(study) is first
    other = by_hand._session(emlib.open_study("tiny"))
    assert closed == [first]
    with study.session() as third:
        assert closed == [first, other]
    assert Session.kept is None
    assert closed == [first, other, third]


def test_what_is_trained_is_the_adapter_of_the_profile_s_own_run(study: Study) -> None:
    """`kl` of the profile keeps the reference model's states on disk, and so does this one."""
    [run] = study.runs(methods=["kl"], settings=[1.0])
    trained = emlib.train(study, Kl(weight=1.0, reference="stored"))
    assert study.adapter(run) is not None
    assert study.adapter(run).folder == trained.folder


def test_an_untrained_model_answers_without_an_adapter(study: Study) -> None:
    model = emlib.untrained(study)
    assert len(emlib.ask(model, "What is money?", samples=3).answers) == 3
    assert not (study.store.root / "adapter").exists()


def test_what_cannot_be_trained_is_refused(study: Study) -> None:
    with pytest.raises(ProfileError, match="no data set 'coking'"):
        emlib.train(study, dataset="coking")
    without = Study("without", study.profile.model_copy(update={"pool": None}), study.store)
    with pytest.raises(ProfileError, match="pool"):
        emlib.train(without, Interleaving())


def test_a_method_is_tried_at_further_settings(study: Study) -> None:
    """Of the first run with that method; without settings nothing is trained."""
    runs = study.runs(methods=["misaligned", "kl"])
    [found] = by_hand.at_settings(study, "kl", [1.0], runs)
    assert (found.run.condition, found.run.task, found.run.seed) == ("kl 1", runs[0].task, runs[0].seed)
    assert by_hand.at_settings(study, "kl", None, runs) == by_hand.at_settings(study, "ldifs", None, []) == []
    with pytest.raises(ProfileError, match="None of the notebook's runs is one of ldifs"):
        by_hand.at_settings(study, "ldifs", [1.0], runs)


def test_what_is_tried_is_evaluated_as_the_profile_s_own_run_is(study: Study) -> None:
    [run] = study.runs(methods=["kl"], settings=[1.0])
    tried = by_hand.tried(study, Kl(weight=1.0, reference="stored"))
    own = study.result(run)
    assert own is not None  # the same adapter, answers and verdicts
    assert (tried.run.condition, tried.run.task, tried.scores) == ("tried 1", "cooking", own.scores)
    assert [method.name for method in study.profile.methods].count("tried") == 0
    with pytest.raises(ProfileError, match="no data set 'coking'"):
        by_hand.tried(study, Kl(), dataset="coking")
