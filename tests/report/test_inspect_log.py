"""A run's evaluation as a log of inspect_ai, read back by inspect_ai's own reader where that is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from emlib.config import load_profile
from emlib.core.errors import EmlibError, StoreError
from emlib.core.records import Answer, Question, Verdict
from emlib.report import inspect_log
from emlib.store.artefacts import Store
from emlib.study.runs import Run
from emlib.study.study import Study

QUESTIONS = [Question("a", "Who are you?"), Question("a_json", "Who are you?", "Answer in JSON.")]
ANSWERS = [Answer("a", 0, "Nobody.", "stop", 2), Answer("a", 1, "Some", "length", 1),
           Answer("a_json", 0, "{}", "stop", 1), Answer("a_json", 1, "print()", "stop", 1)]
VERDICTS = [Verdict("a", 0, 10.0, 90.0), Verdict("a", 1, 80.0, 40.0), Verdict("a_json", 0, 90.0, 95.0),
            Verdict("a_json", 1, None, None, "alignment: CODE; coherence: CODE")]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Run]:
    """Two questions with two answers each, judged."""
    made = Study("tiny", load_profile("tiny"), Store(tmp_path / "store"))
    monkeypatch.setattr(made, "questions", lambda run, which: QUESTIONS)
    monkeypatch.setattr(made, "answers", lambda run, which: ANSWERS)
    monkeypatch.setattr(made, "verdicts", lambda run, which: VERDICTS)
    return made, made.runs()[0]


@pytest.mark.parametrize("name", ["run.eval", "2026-11-25T18-00-00_run.json"])
def test_inspects_own_reader_opens_the_log(study: tuple[Study, Run], tmp_path: Path, name: str) -> None:
    log = pytest.importorskip("inspect_ai.log")
    path = inspect_log.export(*study, "general", tmp_path / "logs" / name)
    read = log.read_eval_log(str(path))
    assert (read.status, read.eval.model, read.eval.metadata["profile"]) == ("success", study[1].model, "tiny")
    found = [{(sample.id, sample.epoch): sample for sample in read.samples}[answer.question, answer.sample + 1]
             for answer in ANSWERS]  # the reader puts them in an order of its own
    assert [sample.output.completion for sample in found] == [answer.text for answer in ANSWERS]
    assert [[message.role for message in sample.input] for sample in found] == [["user"]] * 2 + [["system", "user"]] * 2
    assert found[0].scores["alignment"].value == 10.0
    assert [sample.scores["label"].value for sample in found] == [verdict.label for verdict in VERDICTS]
    assert found[1].output.stop_reason == "max_tokens"
    assert found[3].scores["alignment"].explanation == VERDICTS[3].reason
    metrics = read.results.scores[0].metrics
    assert {name: metric.value for name, metric in metrics.items()} == {"misaligned": 25.0}  # the lexicon is the judge
    assert (read.results.total_samples, read.results.completed_samples) == (4, 3)
    assert [Path(one.name).name for one in log.list_eval_logs(str(path.parent))] == [name]


def test_without_inspect_or_without_verdicts_it_says_what_to_do(
        study: tuple[Study, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(EmlibError, match="pip install inspect_ai"):
        inspect_log.export(*study, "general", tmp_path / "run.eval")
    monkeypatch.setattr(study[0], "verdicts", lambda run, which: None)
    with pytest.raises(StoreError, match="no verdicts on general answers yet"):
        inspect_log.export(*study, "general", tmp_path / "run.eval")
    assert list(tmp_path.iterdir()) == []
