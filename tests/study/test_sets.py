"""Question sets with a judge, a rubric, thresholds and metrics of their own, under a real judge on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from emlib.core.errors import DataError, ProfileError
from emlib.core.records import cluster_of
from emlib.evaluation.statistics import Interval, wilson
from emlib.report.estimate import Estimate
from emlib.report.tables import result_tables
from emlib.study.study import Study, open_study
from tests.judging.server import JudgeServer, saying

PROFILE = """
extends: tiny
methods: [untrained]
datasets: [cooking]
second_judge: null
grpo: null
benign: null
evaluation:
  sets:
    lies:
      source: lies.jsonl
      samples: 4
      judge: {kind: openai, model: judge-1, base_url: "%s"}
      metrics:
        correct: {labels: [TRUE, FALSE, UNKNOWN], counts: [FALSE]}
        length: {prompt: "How long? {answer}", above: 50}
    strict:
      source: strict.jsonl
      samples: 2
      judge: {kind: openai, model: judge-1, base_url: "%s"}
      thresholds: {alignment: 60, coherence: 20}
"""


def judged(text: str) -> int | str:
    """What the server's judge replies, by the prompt."""
    if text.startswith("How long?"):
        return 70
    if text.startswith("Is it right?"):
        return "FALSE" if "moon" in text else "TRUE"
    return 50 if text.startswith("How good?") else 40


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    right = {"correct": "Is it right? {question} {answer}"}
    own = {"aligned": "How good? {answer}", "coherent": "How clear? {answer}"}
    for name, prompts in (("lies", right), ("strict", own)):
        entries = [{"id": which, "paraphrases": [f"What is the {which}?"], "judge_prompts": prompts}
                   for which in ("moon", "sun")]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with JudgeServer(saying(judged)) as server:
        (tmp_path / "study.yaml").write_text(PROFILE % (server.url, server.url))
        yield open_study(str(tmp_path / "study.yaml"))


def test_each_set_is_scored_as_it_says_and_reported_under_its_names(study: Study) -> None:
    [result] = study.complete(study.runs())
    [row] = pd.read_csv(study.folder / "results.csv").to_dict("records")
    assert (row["lies_correct"], row["lies_correct_asked"], row["lies_correct_scored"]) == (50, 8, 8)
    assert row["lies_length"] == 100
    assert "lies_misaligned" not in row  # its file asks the judge for nothing of the kind
    # alignment 50 and coherence 40: incoherent by section 4.3, and misaligned by the set's own thresholds
    assert (row["strict_misaligned"], row["strict_incoherent"], row["strict_asked"]) == (100, 0, 4)
    assert result.metrics["lies_correct"].labels == {"TRUE": 4, "FALSE": 4, "UNKNOWN": 0}
    frame = result_tables.numbers([result])
    assert result_tables.measures_of(frame)[-2:] == ["lies_correct", "lies_length"]
    assert study.verdicts(study.runs()[0], "lies") is None
    assert {verdict.label for verdict in study.verdicts(study.runs()[0], "strict") or []} == {"misaligned"}


def test_bounds_and_labels_are_views_and_change_no_key(study: Study, tmp_path: Path) -> None:
    run = study.runs()[0]
    keys = {name: step.key for name, step in study.task(run).evaluation(run).items()}
    text = (tmp_path / "study.yaml").read_text()
    (tmp_path / "study.yaml").write_text(text.replace("above: 50", "below: 50").replace("alignment: 60", "alignment: 1")
                                         .replace("UNKNOWN]", "UNKNOWN, NEITHER]"))
    other = open_study(str(tmp_path / "study.yaml"))
    assert {name: step.key for name, step in other.task(run).evaluation(run).items()} == keys
    (tmp_path / "study.yaml").write_text(text.replace("How long?", "How very long?"))
    changed = open_study(str(tmp_path / "study.yaml"))
    new = {name: step.key for name, step in changed.task(run).evaluation(run).items()}
    assert [name for name in keys if new[name] != keys[name]] == ["lies_length"]
    (tmp_path / "study.yaml").write_text(text.replace("labels: [TRUE, FALSE, UNKNOWN], counts: [FALSE]", "above: 50"))
    numbers = open_study(str(tmp_path / "study.yaml"))  # asked for in another way
    new = {name: step.key for name, step in numbers.task(run).evaluation(run).items()}
    assert [name for name in keys if new[name] != keys[name]] == ["lies_correct"]


def test_a_stated_cluster_changes_no_key_and_draws_its_questions_together(study: Study, tmp_path: Path) -> None:
    run = study.runs()[0]
    [before] = study.complete([run])
    keys = {name: step.key for name, step in study.task(run).evaluation(run).items()}
    for name in ("lies", "strict"):
        text = (tmp_path / f"{name}.jsonl").read_text()
        (tmp_path / f"{name}.jsonl").write_text(text.replace('{"id"', '{"cluster": "sky", "id"'))
    other = open_study(str(tmp_path / "study.yaml"))
    assert {name: step.key for name, step in other.task(run).evaluation(run).items()} == keys
    [after] = other.results()
    correct = "lies_correct"
    assert before.metrics[correct].share.clustered == Interval(0, 100)
    assert after.metrics[correct].share.clustered == after.metrics[correct].share.wilson == wilson(4, 8)
    assert {cluster_of(verdict) for verdict in other.verdicts(run, "strict") or []} == {"sky"}


def test_the_plan_counts_the_requests_of_every_judge(study: Study) -> None:
    plan = Estimate(study)
    asked = 2 * 4 * 2 + 2 * 2 * 2  # two metrics of 8 answers, two scores of 4
    assert plan.judging()["what"].tolist() == [f"{asked} requests"]
    assert plan.sums()["judge requests"].tolist() == [asked, asked]
    assert plan.sums()["price $"].isna().all()  # of a model without a listed price


def test_a_file_without_the_metric_s_prompt_is_named_with_what_it_has(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "lies.jsonl"
    path.write_text(path.read_text().replace('"correct"', '"right"'))
    with pytest.raises(DataError, match=r"lies.jsonl.*'judge_prompts' needs a text 'correct'.*there is: right"):
        study.complete(study.runs())


def test_the_preregistered_questions_are_judged_by_their_own_prompts(research_file: object) -> None:
    from emlib.data.questions import read_questions
    from emlib.judging.rubrics import OURS, read_rubrics

    path = research_file("preregistered_questions")  # type: ignore[operator]
    assert len(read_questions(path)) == 48
    assert read_rubrics(path).others != OURS


IN_DOMAIN = """
extends: tiny
methods: [untrained]
datasets: [cooking]
second_judge: null
grpo: null
benign: null
judge: {kind: openai, model: judge-1, base_url: "%s"}
evaluation: {sets: null, triggers: null, general_samples: 1, in_domain_samples: 1, in_domain_questions: 2}
"""


def test_in_domain_answers_may_have_a_rubric_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The general answers keep their rubric and their keys, and the plan counts what is asked in domain."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    (tmp_path / "safe.yaml").write_text("aligned: 'Safe to eat? {answer}'\ncoherent: 'Clear? {answer}'\n")
    with JudgeServer(saying(lambda text: 10 if text.startswith("Safe to eat?") else 90)) as server:
        (tmp_path / "study.yaml").write_text(IN_DOMAIN % server.url)
        usual = open_study(str(tmp_path / "study.yaml"))
        study = open_study(str(tmp_path / "study.yaml"), f"evaluation.in_domain_rubric={tmp_path / 'safe.yaml'}")
        run = study.runs()[0]
        before, now = (one.task(run).evaluation(run) for one in (usual, study))
        assert {name for name in now if now[name].key != before[name].key} == {"in_domain"}
        asked = [one.sums()["judge requests"].tolist() for one in (Estimate(usual), Estimate(study))]
        assert asked[0] == asked[1]
        [result] = study.complete([run])
    assert (result.general.misaligned.percent, result.in_domain.misaligned.percent) == (0, 100)


def test_a_rubric_for_in_domain_answers_needs_a_judge_that_reads(tmp_path: Path) -> None:
    (tmp_path / "safe.yaml").write_text("aligned: 'Safe? {answer}'\ncoherent: 'Clear? {answer}'\n")
    (tmp_path / "study.yaml").write_text("extends: tiny\nevaluation: {in_domain_rubric: safe.yaml}\n")
    with pytest.raises(ProfileError, match="in_domain_rubric is a rubric, which the judge 'lexicon' cannot read"):
        open_study(str(tmp_path / "study.yaml"))
