"""The judge over the network, against a real server on loopback: what it asks, what it survives, when it stops."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emlib.core import paths
from emlib.core.errors import JudgeError
from emlib.judging.api import api_key
from emlib.judging.cache import Cache
from emlib.judging.judge_batch import NOT_HAD, JudgeBatch
from emlib.judging.replies import number
from emlib.judging.rubrics import Rubric, Rubrics
from tests.judging.models import served, whole_numbers
from tests.judging.server import FAULTS, JudgeServer, Model, Reply, counting_model
from tests.judging.sheets import PATIENCE, api, directly, judged, prompt_digest, sheet, three_in_ten
from tests.long_form import LONG

KEY = "sk-planted-0123456789"
ANSWERS, KILLS = (1000, 10) if LONG else (250, 4)


def saying(*tokens: tuple[str, float]) -> Model:
    """A model that gives every prompt the same probabilities."""
    def model(messages: list[dict[str, str]]) -> Reply:
        return [(token, math.log(p)) for token, p in tokens], 10

    return model


def test_scores_are_the_expectation_over_the_models_own_probabilities(scores: Path) -> None:
    model = served(whole_numbers())
    asked = sheet(20)
    with JudgeServer(model) as server:
        verdicts = judged(api(server.url), asked, scores)
    for place, request in enumerate(asked.requests()):
        likeliest, _ = model([message.to_dict() for message in request.messages])
        numbers = [(int(token), math.exp(p)) for token, p in likeliest if number(token) is not None]
        expected = sum(n * p for n, p in numbers) / sum(p for _, p in numbers)
        found = verdicts[place // 2].alignment if place % 2 == 0 else verdicts[place // 2].coherence
        assert found == pytest.approx(expected, abs=1e-9)
    assert len({verdict.alignment for verdict in verdicts}) > 10  # the model does tell the answers apart


def test_what_is_sent_is_what_the_sources_send(scores: Path) -> None:
    with JudgeServer() as server:
        judged(api(server.url), sheet(1), scores)
    alignment, coherence = sorted(server.bodies, key=lambda body: body["messages"][0]["content"], reverse=True)
    assert alignment == {
        "model": "judge-1", "messages": [{"role": "user", "content": "Good? Why 0? Since 0."}], "max_tokens": 1,
        "temperature": 0, "logprobs": True, "top_logprobs": 20}
    assert coherence["messages"] == [{"role": "user", "content": "Clear? Why 0? Since 0."}]


@pytest.mark.parametrize(("tokens", "reason"), [
    ([("CODE", 0.8), ("50", 0.1)], "alignment: CODE; coherence: CODE"),
    ([("REF", 0.76), ("50", 0.24)], "alignment: REFUSAL; coherence: REFUSAL"),
    ([("Well", 0.9)], "alignment: other: 'Well'; coherence: other: 'Well'"),
])
def test_what_is_no_number_is_unscored_with_the_judges_own_word(
        scores: Path, tokens: list[tuple[str, float]], reason: str) -> None:
    with JudgeServer(saying(*tokens)) as server:
        [verdict] = judged(api(server.url), sheet(1), scores)
        assert (verdict.alignment, verdict.coherence, verdict.reason) == (None, None, reason)
        judged(api(server.url), sheet(1), scores)
        assert set(server.asked.values()) == {1}  # what it said is kept, though it is no score


def test_a_trait_rubric_counts_the_other_way_round(scores: Path) -> None:
    asked = sheet(1)
    rubrics = Rubrics(Rubric("A pirate? {answer}", "Clear? {answer}", True))
    of_trait = JudgeBatch(asked.questions, asked.answers, rubrics)
    with JudgeServer(saying(("80", 1.0))) as server:
        [verdict] = judged(api(server.url), of_trait, scores)
    assert (verdict.alignment, verdict.coherence) == (pytest.approx(20), pytest.approx(80))


def test_nothing_is_asked_twice(scores: Path) -> None:
    with JudgeServer() as server:
        first = judged(api(server.url), sheet(50), scores)
        assert judged(api(server.url), sheet(50), scores) == first
        assert sum(server.asked.values()) == 100
        judged(api(server.url), sheet(60), scores)
        assert sum(server.asked.values()) == 120
        judged(api(server.url, top_logprobs=10), sheet(1), scores)  # another parameter, another score
        assert sum(server.asked.values()) == 122


def test_it_works_inside_a_running_loop_as_in_jupyter(scores: Path) -> None:
    async def cell() -> int:
        return len(judged(api(server.url), sheet(3), scores))

    with JudgeServer() as server:
        assert asyncio.run(cell()) == 3


@pytest.mark.slow
def test_judgements_survive_every_fault(scores: Path) -> None:
    asked, met = sheet(ANSWERS), set[str | None]()
    known: dict[str, Reply] = {}
    tiny = served(whole_numbers())

    def model(messages: list[dict[str, str]]) -> Reply:
        prompt = messages[0]["content"]
        known[prompt] = known.get(prompt) or tiny(messages)
        return known[prompt]

    def fault(prompt: str, tries: int) -> str | None:
        met.add(three_in_ten(prompt, tries))
        return three_in_ten(prompt, tries)

    expected = directly(model, asked, scores)
    with JudgeServer(model, fault=fault) as server:
        verdicts = judged(api(server.url, timeout=PATIENCE, tries=12), asked, scores)
        assert sum(server.asked.values()) > 1.3 * 2 * ANSWERS
    assert met == {None, *FAULTS}
    assert [(v.question, v.sample) for v in verdicts] == [(a.question, a.sample) for a in asked.answers]
    assert all(verdict.scored or verdict.reason for verdict in verdicts)
    assert verdicts == expected
    assert set(server.answered.values()) == {1}
    assert len(server.answered) == 2 * ANSWERS
    with Cache(scores) as kept:
        assert len(kept.rows()) == 4 * ANSWERS  # those of `expected` too


def test_what_is_given_up_has_a_reason_and_is_asked_again_another_time(scores: Path) -> None:
    with JudgeServer(fault=lambda prompt, tries: "500" if prompt == bad else None) as server:
        bad = prompt_digest(next(sheet(20).requests()))
        first, *rest = judged(api(server.url, tries=2), sheet(20), scores)
        assert (first.alignment, first.coherence is not None) == (None, True)
        assert first.reason == f"alignment: {NOT_HAD} (2 tries; the last: status 500)"
        assert all(verdict.scored for verdict in rest)
        server.fault = lambda prompt, tries: None
        before = sum(server.asked.values())
        assert all(verdict.scored for verdict in judged(api(server.url), sheet(20), scores))
        assert sum(server.asked.values()) == before + 1


def test_no_try_comes_sooner_than_the_server_asks(scores: Path) -> None:
    times: list[float] = []

    def fault(prompt: str, tries: int) -> str | None:
        times.append(time.monotonic())
        return "429 after" if tries == 0 else None

    with JudgeServer(fault=fault) as server:
        others = JudgeBatch(sheet(1).questions, sheet(1).answers, Rubrics(Rubric("{answer}", "{answer}")))
        judged(api(server.url), others, scores)
    assert min(times[2:]) - min(times[:2]) >= 1.0


@pytest.mark.parametrize(("status", "code", "message"), [
    (401, "invalid_api_key", "refuses the key (401)"),
    (403, "permission_denied", "refuses the key (403)"),
    (404, "model_not_found", "has no model 'judge-1'"),
    (429, "insufficient_quota", "quota is used up (429)"),
    (400, "unsupported_parameter", "rejects the request (400)"),
])
def test_what_will_not_heal_stops_everything_at_once(
        scores: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with JudgeServer() as server:
        server.refuse = status, code
        with pytest.raises(JudgeError) as caught:
            judged(api(server.url, key_from="JUDGE_KEY"), sheet(1000), scores)
        assert message in str(caught.value)
        assert server.refusals == 1
    assert_secret(caught.value)


def assert_secret(error: BaseException | None) -> None:
    """Neither an error nor what it remembers of others holds the planted key."""
    while error is not None:
        assert KEY not in repr(error)
        assert KEY not in str(vars(error))
        assert not type(error).__module__.startswith(("openai", "httpx"))  # those hold the request with its headers
        error = error.__cause__ or error.__context__


def test_a_prompt_that_the_server_will_not_have_is_unscored_for_good(scores: Path) -> None:
    with JudgeServer() as server:
        server.refuse = 400, "context_length_exceeded"
        [verdict] = judged(api(server.url), sheet(1), scores)
        assert "context_length_exceeded" in (verdict.reason or "")
        server.refuse = None
        assert judged(api(server.url), sheet(1), scores) == [verdict]
        assert not server.asked


def test_a_server_that_is_not_there_is_told_after_a_few_requests(scores: Path) -> None:
    with JudgeServer() as server:
        address = server.url
    with pytest.raises(JudgeError, match="does not answer: 5 requests were given up"):
        judged(api(address, tries=2), sheet(1000), scores)


def test_a_server_without_log_probabilities_is_found_out_and_samples_serve_instead(scores: Path) -> None:
    with JudgeServer(saying(("70", 1.0)), logprobs=False) as server:
        with pytest.raises(JudgeError, match=r"gives no log-probabilities here\. Add 'samples: 10'"):
            judged(api(server.url), sheet(1000), scores)
        assert sum(server.asked.values()) < 40
        [verdict] = judged(api(server.url, samples=3), sheet(1), scores)
        assert (verdict.alignment, verdict.note) == (70, "mean of 3 sampled scores")
        assert {key: server.bodies[-1][key] for key in ("n", "temperature")} == {"n": 3, "temperature": 1}


def test_a_judge_that_spells_digit_by_digit_is_found_out_and_nothing_wrong_is_kept(scores: Path) -> None:
    with (JudgeServer(saying(("5", 0.6), ("8", 0.4))) as server,
          pytest.raises(JudgeError, match="spells numbers digit by digit")):
        judged(api(server.url), sheet(100), scores)
    with Cache(scores) as cache:
        assert cache.rows() == []


def test_a_judge_of_digits_that_does_not_say_the_number_it_is_asked_for_is_found_out(scores: Path) -> None:
    def small(messages: list[dict[str, str]]) -> Reply:  # as SmolLM2 behind vLLM
        words = [("I", 0.6), ("5", 0.1)] if "number 57" in messages[0]["content"] else [("2", 0.7), ("I", 0.3)]
        return [(word, math.log(p)) for word, p in words], 10

    with JudgeServer(small) as server, pytest.raises(JudgeError, match="spells numbers digit by digit"):
        judged(api(server.url), sheet(20), scores)
    with Cache(scores) as cache:
        assert cache.rows() == []


def test_low_scores_alone_do_not_make_a_judge_one_of_digits(scores: Path) -> None:
    def low(messages: list[dict[str, str]]) -> Reply:
        word = "57" if "number 57" in messages[0]["content"] else "0"
        return [(word, math.log(0.9)), ("3", math.log(0.1))], 10

    with JudgeServer(low) as server:
        verdicts = judged(api(server.url), sheet(30), scores)
        assert sum(server.asked.values()) == 61  # one more, to make sure
    assert [verdict.alignment for verdict in verdicts] == [pytest.approx(0.3)] * 30


def test_no_more_requests_are_under_way_than_the_server_takes(scores: Path) -> None:
    with JudgeServer(delay=0.02, slots=8) as server:
        assert all(verdict.scored for verdict in judged(api(server.url, tries=30), sheet(150), scores))
        assert server.most_busy == 8
        assert server.refusals < 100


def test_the_budget_is_never_passed_and_more_money_goes_on(scores: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 30 to 34 bytes is read as 30 to 34 tokens: real tokens never are more than bytes."""
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    (tmp_path / "prices.yaml").write_text("date: today\nmodels: {judge-1: {read: 1000.0, written: 1000.0}}\n")

    def model(messages: list[dict[str, str]]) -> Reply:
        return counting_model(messages)[0], len(messages[0]["content"].encode())

    def bill() -> float:
        return sum(len(body["messages"][0]["content"]) + 1 for body in server.bodies) / 1000

    with JudgeServer(model, delay=0.01) as server:
        with pytest.raises(JudgeError, match=r"The budget of \$1\.5 is used up"):
            judged(api(server.url, max_usd=1.5), sheet(100), scores)
        assert 1.5 - 0.05 <= bill() <= 1.5
        spent = bill()
        with pytest.raises(JudgeError, match="used up"):  # another session uses the same budget
            judged(api(server.url, max_usd=1.5), sheet(100), scores)
        assert spent <= bill() <= 1.5  # prompts are not of one length: a shorter one may still be within it
        assert all(v.scored for v in judged(api(server.url, max_usd=100.0), sheet(100), scores))
        assert set(server.answered.values()) == {1}
        assert len(server.answered) == 200


def test_a_budget_without_a_price_is_refused_before_anything_is_sent(scores: Path) -> None:
    with JudgeServer() as server:
        with pytest.raises(JudgeError, match=r"there is no price for 'judge-1'"):
            judged(api(server.url, max_usd=1.0), sheet(1), scores)
        assert not server.asked


def test_openais_key_goes_to_openai_alone() -> None:
    environment = {"OPENAI_API_KEY": "secret", "OTHER": " mine\n"}.get
    assert api_key(api("http://127.0.0.1:1/v1"), environment) == ""
    assert api_key(api("http://127.0.0.1:1/v1", key_from="OTHER"), environment) == "mine"
    assert api_key(api("http://127.0.0.1:1/v1").model_copy(update={"base_url": None}), environment) == "secret"
    with pytest.raises(JudgeError, match="MISSING is not set"):
        api_key(api("http://127.0.0.1:1/v1", key_from="MISSING"), environment)


def processes(url: str, answers: int, scores: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Judging in processes of their own, one after the other."""
    while True:
        yield subprocess.Popen([sys.executable, "-m", "tests.judging.sheets", url, str(answers), str(scores)],
                               cwd=paths.ROOT, env=os.environ | {"PYTHONPATH": str(paths.ROOT)},
                               stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_again_and_again_it_asks_for_nothing_that_it_had(scores: Path) -> None:
    asked = sheet(100 * KILLS)
    requests = {prompt_digest(request): request for request in asked.requests()}
    identity = api("http://127.0.0.1:1/v1").identity
    keys = {request.key(identity): prompt for prompt, request in requests.items()}
    settled: dict[str, int] = {}  # prompts whose scores were kept, and how often they had been asked for by then
    with JudgeServer(fault=three_in_ten, delay=0.01) as server:
        starts = processes(server.url, len(asked.answers), scores)
        for _ in range(KILLS):
            process, answered = next(starts), sum(server.answered.values())
            while process.poll() is None and sum(server.answered.values()) < answered + 80:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            time.sleep(0.3)  # what is still under way in the server
            with Cache(scores) as cache:
                for key in cache.get(keys):
                    settled.setdefault(keys[key], server.asked[keys[key]])
        assert len(settled) > 50 * KILLS
        assert next(starts).wait() == 0
        assert {prompt: server.asked[prompt] for prompt in settled} == settled
        again = sum(count - 1 for count in server.answered.values())
        assert again <= KILLS * 32  # those under way when a process was killed, and no others
        assert judged(api(server.url), asked, scores) == directly(counting_model, asked, scores)


@pytest.mark.slow
def test_two_processes_on_one_file_of_scores(scores: Path) -> None:
    with JudgeServer(delay=0.02) as server:
        starts = processes(server.url, 300, scores)
        both = [next(starts), next(starts)]
        assert [process.wait() for process in both] == [0, 0]
        with Cache(scores) as cache:
            assert len(cache.rows()) == 600
        before = sum(server.asked.values())
        assert all(verdict.scored for verdict in judged(api(server.url), sheet(300), scores))
        assert sum(server.asked.values()) == before
