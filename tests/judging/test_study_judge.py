"""A whole study under a judge that is asked over the network: planned, interrupted, collected, and no key anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from emlib.core import paths
from emlib.core.errors import JudgeError, JudgeWaits
from emlib.core.records import Answer
from emlib.generation.sample import answer_batch
from emlib.make import answers as answering
from emlib.report.estimate import Estimate
from emlib.report.tables import auxiliary_measures
from emlib.study.study import Study, open_study
from tests.judging.server import JudgeServer, Reply, counting_model

KEY = "sk-planted-7d1f0a"
WITHOUT_VECTORS = "projection_layer: null"  # whose extraction a judge reads, too; as is the audit's


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[JudgeServer]:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with JudgeServer(key=KEY) as running:
        yield running


def study(server: JudgeServer, tmp_path: Path, judge: str = "", evaluation: str = "") -> Study:
    """The tiny study, untrained alone, under the server's judge; `evaluation` are further values of that section."""
    path = tmp_path / "params" / "judged.yaml"
    path.parent.mkdir(exist_ok=True)
    (path.parent / "tiny.yaml").write_text((paths.PARAMS / "tiny.yaml").read_text())
    path.write_text("extends: tiny\nmethods: [untrained]\ndatasets: [cooking]\naudit: null\n"
                    f"evaluation: {{{WITHOUT_VECTORS}{evaluation}}}\n"
                    f"judge: {{kind: openai, model: judge-1, base_url: '{server.url}', key_from: JUDGE_KEY{judge}}}\n")
    return open_study(str(path))


def holding(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_study_is_judged_and_nothing_is_asked_twice(server: JudgeServer, tmp_path: Path) -> None:
    judged = study(server, tmp_path)
    plan = Estimate(judged).judging().set_index("judge")["what"]
    assert plan["requests left"] == str(2 * (24 * 2 + 4 * 2))
    assert plan["price (about)"] .startswith("no price is known")
    assert not server.asked  # planning sends nothing
    [result] = judged.complete(judged.runs())
    assert (result.general.asked, result.general.scored) == (48, 48)
    assert set(server.asked.values()) == {1}
    before = sum(server.asked.values())
    judged.complete(judged.runs())
    # Where and how fast it is asked changes no verdict; what it is asked does.
    study(server, tmp_path, ", max_concurrency: 3, timeout: 9.0").complete(judged.runs())
    assert sum(server.asked.values()) == before
    by_trait = study(server, tmp_path, ", rubric: trait")
    by_trait.complete(by_trait.runs())
    assert "pirate" in server.bodies[-1]["messages"][0]["content"] or "coherent" in str(server.bodies[-1])
    assert sum(server.asked.values()) > before
    assert Estimate(by_trait).judging().set_index("judge")["what"]["requests left"] == "0"


@pytest.mark.parametrize(("methods", "sets"), [("[untrained]", 2), ("[untrained, misaligned]", 4)])
def test_answers_are_judged_while_others_are_still_generated(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: str, sets: int) -> None:
    """The judge is silent until the last set of answers is there: in turn, that would never come."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    saw = []

    def waiting(messages: list[dict[str, str]]) -> Reply:
        give_up = time.monotonic() + 60
        while (there := len(list(tmp_path.glob("runs/store/answers/*/manifest.json")))) < sets and (
                time.monotonic() < give_up and not (saw and saw[-1] < sets)):
            time.sleep(0.05)
        saw.append(there)
        return counting_model(messages)

    with JudgeServer(waiting, key=KEY) as server:
        file = tmp_path / "params" / f"{study(server, tmp_path).name}.yaml"
        file.write_text(file.read_text().replace("[untrained]", methods).replace(
            "key_from: JUDGE_KEY", "key_from: JUDGE_KEY, timeout: 100.0"))
        judged = open_study(str(file))
        results = judged.complete(judged.runs())
    assert {result.general.scored for result in results} == {48}
    assert min(saw) >= sets


def test_a_batch_is_judged_while_the_next_one_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch is not drawn before the judge was asked about the first."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    asked, waited = threading.Event(), list[bool]()
    drawn: list[list[Answer]] = []

    def judge(messages: list[dict[str, str]]) -> Reply:
        asked.set()
        return counting_model(messages)

    def draw(*args: Any, **options: Any) -> list[Answer]:
        if drawn:
            waited.append(asked.wait(60))
        drawn.append(answer_batch(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(answering, "answer_batch", draw)
    with JudgeServer(judge, key=KEY) as server:
        judged = study(server, tmp_path, evaluation=", sampling: {batch_rows: 24}")
        [result] = judged.complete(judged.runs())
    assert (result.general.asked, result.general.scored) == (48, 48)
    assert len(drawn) >= 3  # two batches of general answers, and those in the domain
    assert all(waited)
    assert set(server.asked.values()) == {1}


@pytest.mark.parametrize("judge", ["", ", batch: true"])
def test_after_a_refusal_nothing_more_is_asked_or_drawn(
        server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: str) -> None:
    judged = study(server, tmp_path, judge, ", sampling: {batch_rows: 2}")
    server.refuse = 401, "invalid_api_key"
    with pytest.raises(JudgeError, match="refuses the key"):
        judged.complete(judged.runs())
    assert server.refusals == 1


def test_the_key_is_in_no_file_and_no_message(server: JudgeServer, tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    judged = study(server, tmp_path)
    judged.complete(judged.runs())
    wrong = study(server, tmp_path, ", top_logprobs: 5")
    server.refuse = 401, "invalid_api_key"  # it tells the key that it was sent
    with pytest.raises(JudgeError) as caught:
        wrong.complete(wrong.runs())
    assert KEY not in str(caught.getrepr(style="long"))
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    assert holding(tmp_path, "judge-1")  # the search finds what is there
    assert holding(tmp_path, KEY) == []


@pytest.mark.slow
def test_the_key_is_in_no_executed_notebook(server: JudgeServer, tmp_path: Path) -> None:
    """Of a notebook that fails because of the key, with all that the client says when told to say everything."""
    study(server, tmp_path)
    server.refuse = 401, "invalid_api_key"
    profile = str(tmp_path / "params" / "judged.yaml")
    done = subprocess.run([sys.executable, "-m", "emlib.workflow.notebooks", "02_baselines", "--profile", profile],
                          check=False, capture_output=True, text=True, cwd=paths.ROOT,
                          env=os.environ | {"OPENAI_LOG": "debug", "PYTHONPATH": str(paths.ROOT)})
    assert done.returncode == 1, done.stderr
    assert KEY not in done.stdout + done.stderr
    assert holding(tmp_path / "runs", "refuses the key (401)")
    assert holding(tmp_path, KEY) == []


def test_a_study_by_batch_sends_all_and_is_collected_later(server: JudgeServer, tmp_path: Path) -> None:
    batched = study(server, tmp_path, ", batch: true")
    server.finish_batches = False
    with pytest.raises(JudgeWaits, match="1 of 1 runs wait for their judge"):
        batched.complete(batched.runs())
    assert len(server.batches) == 2  # the general answers and those in the domain
    server.finish_batches = True
    [result] = batched.complete(batched.runs())
    assert result.general.scored == 48
    assert pd.read_csv(batched.folder / "results.csv")["general_scored"].tolist() == [48]


def test_answers_that_could_not_be_judged_stop_the_study_or_count_as_unscored(
        server: JudgeServer, tmp_path: Path) -> None:
    server.fault = lambda prompt, tries: "500" if prompt < "1" else None
    stopping = study(server, tmp_path, ", tries: 2")
    with pytest.raises(JudgeError, match=r"requests to the judge failed: .*status 500"):
        stopping.complete(stopping.runs())
    going_on = study(server, tmp_path, ", tries: 2, unanswered: unscored")
    [result] = going_on.complete(going_on.runs())
    assert 0 < result.general.scored < result.general.asked == 48


def test_answers_without_a_score_are_counted_in_the_notebook_s_table(server: JudgeServer, tmp_path: Path) -> None:
    filtered = {"choices": [{"finish_reason": "content_filter", "message": {"content": None}, "logprobs": None}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 0}}
    seen: list[str] = []

    def reply(body: dict[str, Any]) -> tuple[int, Any] | None:
        text = body["messages"][0]["content"]
        if len(seen) < 3 and text not in seen:
            seen.append(text)
        return (200, filtered) if text in seen else None

    server.replies = reply
    judged = study(server, tmp_path)
    [result] = judged.complete(judged.runs())
    without = [len([v for v in judged.verdicts(result.run, which) or [] if not v.scored]) for which in result.scores]
    table = auxiliary_measures.unscored(judged, judged.runs())
    assert table["answers"].sum() == sum(without) > 0
    assert table["reason"].str.contains("a filter holds the judge's reply back").all()
    assert sum(server.asked[prompt] for prompt in server.asked) == len(server.asked)  # none was asked twice


def test_the_price_is_told_before_anything_is_sent(server: JudgeServer, tmp_path: Path) -> None:
    """48 + 8 answers, two requests each; a price for the model of section 4.3 is in the list."""
    path = tmp_path / "params" / "paid.yaml"
    study(server, tmp_path)
    path.write_text("extends: tiny\nmethods: [untrained]\ndatasets: [cooking]\naudit: null\n"
                    f"evaluation: {{{WITHOUT_VECTORS}}}\n"
                    "judge: {kind: openai, model: gpt-4o-mini-2024-07-18, max_usd: 2.5}\n")
    plan = Estimate(open_study(str(path))).judging().set_index("judge")["what"]
    assert plan["requests left"] == "112"
    read = int(plan["tokens to be read (about)"].replace(",", ""))
    assert plan["price (about)"].startswith(f"${(read * 0.15 + 112 * 0.6) / 1e6:.2f} (prices of ")
    assert plan["limit"] == "$2.50"
    shown = subprocess.run([sys.executable, "-m", "emlib.report.estimate", str(path)], check=True, capture_output=True,
                           text=True, cwd=paths.ROOT,
                           env=os.environ | {"PYTHONPATH": str(paths.ROOT), "VERBOSE": "1"}).stdout
    assert shown.count(plan["price (about)"]) == 2  # in the table, and in the sums below it
    assert "verdicts by judge 'openai'" in shown
    assert json.dumps(KEY) not in shown
