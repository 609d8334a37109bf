"""Judging by batch: sent once, found again after any stop, collected whole, paid at half the price."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from emlib.config import OpenAIJudge
from emlib.core import paths
from emlib.core.errors import JudgeError, JudgeWaits
from emlib.core.records import Verdict
from emlib.judging import batches, judges
from emlib.judging.batch_results import read_lines
from emlib.judging.batches import BatchJudge
from emlib.judging.bodies import Supported, logprobs_body, save_support
from emlib.judging.cache import Cache
from emlib.judging.judge_batch import JudgeBatch, scores_of
from emlib.judging.money import Budget
from emlib.judging.rubrics import Rubric, Rubrics
from tests.judging.server import JudgeServer, saying
from tests.judging.sheets import api, judge_answers, judged, prompt_digest, sheet


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return tmp_path / "scores.sqlite"


def by_batch(spec: OpenAIJudge, asked: JudgeBatch, path: Path) -> list[Verdict]:
    with Cache(path) as cache:
        return judge_answers(asked, spec.identity, cache, BatchJudge(spec, Budget(cache, "test", spec.max_usd)))


def test_a_batch_is_sent_and_on_another_day_collected(scores: Path) -> None:
    with JudgeServer() as server:
        server.finish_batches = False
        for _ in range(3):  # looking again sends nothing again
            with pytest.raises(JudgeWaits, match="40 scores by judge-1 are in batches"):
                by_batch(api(server.url, batch=True), sheet(20), scores)
        assert len(server.batches) == 1
        server.finish_batches = True
        verdicts = by_batch(api(server.url, batch=True), sheet(20), scores)
        assert set(server.asked.values()) == {1}
        assert len(server.asked) == 40
        # The same scores as one by one, and the same place in the cache.
        assert verdicts == judged(api(server.url), sheet(20), scores.with_name("others.sqlite"))
        assert verdicts == judged(api(server.url), sheet(20), scores)
        assert len(server.asked) == 40


def test_what_a_batch_leaves_goes_into_the_next_one(scores: Path) -> None:
    with JudgeServer(fault=lambda prompt, tries: "expired" if prompt < "8" and tries == 0 else None) as server:
        for _ in range(2):
            with pytest.raises(JudgeWaits):
                by_batch(api(server.url, batch=True), sheet(20), scores)
        assert len(server.batches) == 2
        assert all(verdict.scored for verdict in by_batch(api(server.url, batch=True), sheet(20), scores))
        assert set(server.answered.values()) == {1}


def test_a_batch_collects_for_other_evaluations_too(scores: Path) -> None:
    with JudgeServer() as server:
        server.finish_batches = False
        whole = sheet(20)
        first = JudgeBatch(whole.questions, whole.answers[:10], whole.rubrics)
        second = JudgeBatch(whole.questions, whole.answers[10:], whole.rubrics)
        for part in (first, second):
            with pytest.raises(JudgeWaits):
                by_batch(api(server.url, batch=True), part, scores)
        server.finish_batches = True
        assert all(verdict.scored for verdict in by_batch(api(server.url, batch=True), first, scores))
        assert all(verdict.scored for verdict in by_batch(api(server.url, batch=True), second, scores))
        assert set(server.asked.values()) == {1}


def test_a_label_is_kept_as_it_was_said_whoever_collects_it(scores: Path) -> None:
    """CO may be the first token of CORRECT, and of the judge's own word CODE where a number is asked for."""
    numbers = [replace(request, metric="truth") for request in sheet(2).requests()][::2]
    labels = [replace(request, wants_label=True) for request in numbers]
    with JudgeServer(saying(lambda text: "CO")) as server, Cache(scores) as cache:
        server.finish_batches, spec = False, api(server.url, batch=True)
        judge = BatchJudge(spec, Budget(cache, "test"))
        for requests in (labels, numbers):
            with pytest.raises(JudgeWaits):
                scores_of(requests, spec.identity, cache, judge)
        server.finish_batches = True
        assert [score.reason for score in scores_of(numbers, spec.identity, cache, judge)] == ["CODE"] * 2
        assert cache.execute("SELECT count(*) FROM labels") == [(0,)]
        assert [score.reason for score in scores_of(labels, spec.identity, cache, judge)] == ["other: 'CO'"] * 2


def test_all_of_a_label_is_read(scores: Path) -> None:
    """IN may be the first token of INCORRECT, and of "In my view" in capitals."""
    numbers = [replace(request, metric="truth") for request in sheet(2).requests()][::2]
    labels = [replace(request, wants_label=True) for request in numbers]
    token = {"token": "IN", "logprob": -0.1, "top_logprobs": []}
    choice = {"index": 0, "finish_reason": "stop", "logprobs": {"content": [token]}}
    replies = "".join(json.dumps({"custom_id": str(place), "response": {"status_code": 200, "body": {"choices": [
        choice | {"message": {"role": "assistant", "content": "INCORRECT"}}]}}}) + "\n" for place in range(2))
    lines = read_lines(replies.encode(), "judge-1", "", {"0"})
    assert [line.score and line.score.reason for line in lines] == ["other: 'INCORRECT'", "other: 'IN'"]
    spec = api("http://localhost:1/v1", batch=True)
    assert [logprobs_body(spec, request, Supported())["max_tokens"] for request in (numbers[0], labels[0])] == [1, 16]


def left_waiting(server: JudgeServer, scores: Path) -> None:
    """Send a batch of five answers' scores, which the server does not finish yet."""
    server.finish_batches = False
    with pytest.raises(JudgeWaits):
        by_batch(api(server.url, batch=True), sheet(5), scores)


@pytest.mark.parametrize("reached", [False, True])
def test_stopped_while_it_sends_it_finds_the_batch_or_sends_it(
        scores: Path, monkeypatch: pytest.MonkeyPatch, reached: bool) -> None:
    """Stopped between the note that a batch is to be sent and the note that it was: with and without it being sent."""
    with JudgeServer() as server:
        left_waiting(server, scores)
        with Cache(scores) as cache:
            cache.execute("UPDATE batches SET id = NULL")
        if not reached:
            server.batches.clear()
        server.finish_batches = True
        if not reached:
            with pytest.raises(JudgeWaits):
                by_batch(api(server.url, batch=True), sheet(5), scores)
        assert all(verdict.scored for verdict in by_batch(api(server.url, batch=True), sheet(5), scores))
        assert set(server.asked.values()) == {1}


def test_a_batch_costs_half_and_stays_within_the_budget(
        scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(paths.PARAMS, tmp_path / "params")
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params")
    (tmp_path / "params" / "prices.yaml").write_text("date: today\nmodels: {judge-1: {read: 1000.0, written: 0.0}}\n")
    with JudgeServer(lambda messages: ([("50", 0.0)], 10)) as server:
        with pytest.raises(JudgeError, match=r"A batch of 40 scores could cost up to \$0\.7600"):
            by_batch(api(server.url, batch=True, max_usd=0.5), sheet(20), scores)
        assert not server.batches
        with pytest.raises(JudgeWaits):
            by_batch(api(server.url, batch=True, max_usd=1.0), sheet(20), scores)
        by_batch(api(server.url, batch=True, max_usd=1.0), sheet(20), scores)
    with Cache(scores) as cache:
        assert Budget(cache, "test").spent() == pytest.approx(40 * 10 * 1000 / 1_000_000 / 2)


def test_a_batch_that_another_study_collects_is_settled_on_the_account_that_booked_it(
        scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(paths.PARAMS, tmp_path / "params")
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params")
    (tmp_path / "params" / "prices.yaml").write_text("date: today\nmodels: {judge-1: {read: 1000.0, written: 0.0}}\n")
    whole = sheet(30)
    parts = {"a": replace(whole, answers=whole.answers[:20]), "b": replace(whole, answers=whole.answers[20:])}

    def ask(account: str) -> None:
        with Cache(scores) as cache:
            judge_answers(parts[account], spec.identity, cache, BatchJudge(spec, Budget(cache, account)))

    with JudgeServer(lambda messages: ([("50", 0.0)], 10)) as server:
        spec, server.finish_batches = api(server.url, batch=True), False
        for account in parts:
            with pytest.raises(JudgeWaits):
                ask(account)
        server.finish_batches = True
        ask("b")  # collects both batches
    with Cache(scores) as cache:  # a request has 10 tokens at $1,000 a million, half for a batch
        assert Budget(cache, "a").spent() == pytest.approx(40 * 10 * 1000 / 1_000_000 / 2)
        assert Budget(cache, "b").spent() == pytest.approx(20 * 10 * 1000 / 1_000_000 / 2)


def test_a_study_without_a_price_leaves_the_booking_of_a_batch_that_it_collects(scores: Path) -> None:
    with JudgeServer() as server, Cache(scores) as cache:
        server.finish_batches, bare = False, api(server.url, batch=True)
        priced = api(server.url, batch=True, price={"read": 0.0, "written": 1000.0})
        assert priced.identity == bare.identity
        accounts = {name: Budget(cache, name) for name in ("priced", "bare")}
        with pytest.raises(JudgeWaits):
            judge_answers(sheet(20), priced.identity, cache, BatchJudge(priced, accounts["priced"]))
        booked = accounts["priced"].spent()
        assert booked > 0
        server.finish_batches = True
        judge_answers(sheet(20), bare.identity, cache, BatchJudge(bare, accounts["bare"]))
        assert cache.execute("SELECT name FROM batches") == []
        assert [account.spent() for account in accounts.values()] == [booked, 0.0]


def test_a_batch_is_collected_at_the_server_that_it_was_sent_to(scores: Path) -> None:
    with JudgeServer() as first, JudgeServer() as second:
        first.finish_batches = False
        with pytest.raises(JudgeWaits) as waits:
            by_batch(api(first.url, batch=True), sheet(10), scores)
        assert first.url not in str(waits.value)
        with pytest.raises(JudgeWaits, match=f" 20 of them were sent to {re.escape(first.url)}: "):
            by_batch(api(second.url, batch=True), sheet(10), scores)
        assert not second.batches, "nothing is paid twice"
        with pytest.raises(JudgeWaits, match=r"40 scores.* 20 of them were sent to"):
            by_batch(api(second.url, batch=True), sheet(20), scores)
        assert len(second.batches) == 1
        first.finish_batches = True
        assert all(verdict.scored for verdict in by_batch(api(first.url, batch=True), sheet(10), scores))
        assert all(verdict.scored for verdict in by_batch(api(second.url, batch=True), sheet(20), scores))
        assert (sum(first.asked.values()), sum(second.asked.values())) == (20, 20)
    with Cache(scores) as cache:
        assert cache.execute("SELECT batch FROM sent_to") == cache.execute("SELECT name FROM batches") == []


DOLLAR = {"read": 0.0, "written": 1_000_000.0}  # a token; of a batch half


def as_studies_ask(spec: OpenAIJudge, asked: JudgeBatch, account: str = "test") -> list[Verdict]:
    return asked.verdicts(judges.scores(spec, [*asked.requests()], account))


def test_what_waits_in_a_batch_is_not_requested_singly(scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a study whose judge has no `batch`, nor by one that is judging when the batch is sent."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(scores.parent))
    with JudgeServer() as server:
        left_waiting(server, scores)
        for singly in (as_studies_ask, lambda spec, asked: judged(spec, asked, scores)):
            with pytest.raises(JudgeWaits, match=r"^10 scores by judge-1 are in batches that were sent before"):
                singly(api(server.url), sheet(8))
            assert len(server.asked) == 6, "the three further answers"
        server.finish_batches = True
        assert all(verdict.scored for verdict in as_studies_ask(api(server.url), sheet(8)))
        assert len(server.asked) == 16
        assert set(server.asked.values()) == {1}
    with Cache(scores) as cache:
        assert cache.execute("SELECT name FROM batches") == cache.execute("SELECT key FROM waiting") == []


def test_what_a_cancelled_batch_leaves_is_requested_singly(scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(scores.parent))
    with JudgeServer() as server:
        left_waiting(server, scores)
        [batch] = server.batches.values()
        batch["status"] = "cancelled"
        assert all(verdict.scored for verdict in as_studies_ask(api(server.url), sheet(5)))
        assert len(server.asked) == 10


def test_a_batch_of_which_no_score_is_missing_is_settled(
        scores: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All ten were requested at another server meanwhile, for $1 each; one of the batch costs $0.50."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(scores.parent))
    with JudgeServer() as first, JudgeServer() as second, Cache(scores) as cache:
        sent, here = api(first.url, batch=True, price=DOLLAR), api(second.url, price=DOLLAR)
        save_support(cache, sent, Supported(least_tokens=16))
        first.finish_batches = False
        with pytest.raises(JudgeWaits):
            as_studies_ask(sent, sheet(5), "first")
        assert all(verdict.scored for verdict in as_studies_ask(here, sheet(5), "second"))
        assert (first.asked.total(), second.asked.total()) == (0, 10)
        spent = {name: Budget(cache, name).spent for name in ("first", "second")}
        assert (spent["first"](), spent["second"]()) == (80, 10)  # 16 tokens a request are booked
        for finished, usd in ((False, 80), (True, 5)):
            first.finish_batches = finished
            as_studies_ask(sent, sheet(5), "first")
            assert spent["first"]() == usd
        assert cache.execute("SELECT name FROM batches") == []
        cache.execute("INSERT INTO batches SELECT 'b', judge, 'first', 'id', 1.0, made FROM scores LIMIT 1")
        cache.execute("INSERT INTO sent_to VALUES ('b', ?)", (first.url,))
    assert all(verdict.scored for verdict in as_studies_ask(sent, sheet(5), "first")), "the server is gone"
    assert "judge-1: what a batch cost is not known yet. The batches could not be" in capsys.readouterr().out


def test_a_failed_request_of_a_batch_counts_once_where_the_tokens_of_others_are_not_told(scores: Path) -> None:
    """Half of the requests fail, and the server counts no tokens: the batch cost half of what was booked."""
    keys = [request.key(api("http://localhost:1/v1").identity) for request in sheet(5).requests()]
    body = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "90"},
                         "logprobs": {"content": [{"token": "90", "logprob": 0.0, "top_logprobs": [
                             {"token": "90", "logprob": 0.0}]}]}}]}
    answers = [{"custom_id": key, "response": {"status_code": 200, "body": body}} for key in keys[:5]]
    failed = [{"custom_id": key, "response": None, "error": {"code": "batch_expired", "message": "Too late."}}
              for key in keys[5:]]
    with JudgeServer() as server, Cache(scores) as cache:
        spec = api(server.url, batch=True, price=DOLLAR)
        judge = BatchJudge(spec, Budget(cache, "test"))
        server.finish_batches = False
        with pytest.raises(JudgeWaits):
            judge_answers(sheet(5), spec.identity, cache, judge)
        booked = Budget(cache, "test").spent()
        [batch] = server.batches.values()
        for kind, lines in (("output_file_id", answers), ("error_file_id", failed)):
            server.files[kind] = "".join(json.dumps(one) + "\n" for one in lines).encode()
            batch |= {kind: kind, "status": "expired"}
        judge.collect([], lambda request, score: None)
        assert len(cache.rows()) == 5
        assert Budget(cache, "test").spent() == pytest.approx(booked / 2)
        assert booked > 0


def test_a_batch_that_an_earlier_version_sent_is_collected_wherever_it_is(scores: Path) -> None:
    with JudgeServer() as server:
        left_waiting(server, scores)
        with Cache(scores) as cache:
            cache.execute("DELETE FROM sent_to")
        server.finish_batches = True
        assert all(verdict.scored for verdict in by_batch(api(server.url, batch=True), sheet(5), scores))
        assert set(server.asked.values()) == {1}


def test_a_batch_books_as_many_written_tokens_as_its_requests_may_have(
        scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(paths.PARAMS, tmp_path / "params")
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params")
    (tmp_path / "params" / "prices.yaml").write_text("date: today\nmodels: {judge-1: {read: 0.0, written: 1000.0}}\n")
    with JudgeServer() as server:
        spec = api(server.url, batch=True, max_usd=0.3)
        with Cache(scores) as cache:
            save_support(cache, spec, Supported(least_tokens=16))
        with pytest.raises(JudgeError, match=r"A batch of 40 scores could cost up to \$0\.3200"):  # 40 x 16 x 0.001 / 2
            by_batch(spec, sheet(20), scores)


def test_a_judge_that_spells_digit_by_digit_is_found_out_and_its_batch_is_not_sent_again(scores: Path) -> None:
    with JudgeServer(lambda messages: ([("5", math.log(0.6)), ("8", math.log(0.4))], 10)) as server:
        with pytest.raises(JudgeWaits):
            by_batch(api(server.url, batch=True), sheet(5), scores)
        for _ in range(2):
            with pytest.raises(JudgeError, match="spells numbers digit by digit"):
                by_batch(api(server.url, batch=True), sheet(5), scores)
        assert len(server.batches) == 1
    with Cache(scores) as cache:
        assert cache.rows() == []


def test_low_scores_alone_do_not_make_a_batchs_judge_one_of_digits(scores: Path) -> None:
    with JudgeServer(saying(lambda text: 57 if "number 57" in text else 3)) as server:
        with pytest.raises(JudgeWaits):
            by_batch(api(server.url, batch=True), sheet(5), scores)
        assert [verdict.alignment for verdict in by_batch(api(server.url, batch=True), sheet(5), scores)] == [3] * 5


def test_a_wrong_key_is_told_in_one_message(scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    with JudgeServer(key="sk-right") as server:
        with pytest.raises(JudgeError, match=r"refuses the key \(401\)") as caught:
            by_batch(api(server.url, batch=True, key_from="JUDGE_KEY"), sheet(5), scores)
        assert "sk-wrong" not in str(caught.value)
        assert caught.value.__context__ is None
        assert server.refusals == 1


def test_batches_stay_within_the_servers_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = {str(number): request for number, request in enumerate(sheet(50).requests())}
    monkeypatch.setattr(batches, "MOST_REQUESTS", 30)
    assert [len(part) for part in batches.parts(requests)] == [30, 30, 30, 10]
    monkeypatch.setattr(batches, "MOST_BYTES", 5000)
    spec = api("http://127.0.0.1:1/v1")
    found = list(batches.parts(requests))
    assert [key for part in found for key in part] == list(requests)
    lines = [[batches.line(key, logprobs_body(spec, part[key], Supported())) for key in part] for part in found]
    assert all(len("".join(part).encode()) <= 5000 for part in lines)
    accented = JudgeBatch(sheet(1).questions, sheet(1).answers, Rubrics(Rubric("é" * 900 + "{answer}", "{answer}")))
    long = next(accented.requests())
    assert prompt_digest(long)
    assert len(list(batches.parts({"a": long, "b": long}))) == 2
