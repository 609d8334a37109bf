"""Servers that refuse, filter, think, say nothing, or are not there: each answer is scored or says why it is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emlib.core.errors import JudgeError, JudgeWaits
from emlib.core.records import Verdict
from emlib.judging.access import api_key
from emlib.judging.api import ApiJudge
from emlib.judging.batches import BatchJudge
from emlib.judging.bodies import LABEL_TOKENS
from emlib.judging.cache import Cache
from emlib.judging.judge_batch import JudgeBatch, scores_of
from emlib.judging.money import Budget
from emlib.judging.rubrics import Score
from tests.judging.server import JudgeServer, saying
from tests.judging.sheets import api, judge_answers, judged, sheet

Body = dict[str, Any]
Reply = tuple[int, Any] | None
EIGHTY = saying(lambda text: 57 if "number 57" in text else 80)


def error(status: int, message: str, **more: Any) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "invalid_request_error", "code": None} | more}


def completion(text: str | None, *, finish: str = "stop", count: int = 1, **message: Any) -> tuple[int, Any]:
    """A reply without log-probabilities."""
    return 200, {"choices": [{"index": place, "finish_reason": finish, "logprobs": None, "message": {
        "role": "assistant", "content": text} | message} for place in range(count)],
        "usage": {"prompt_tokens": 9, "completion_tokens": count}}


def to(prompt: str, reply: tuple[int, Any]) -> Callable[[Body], Reply]:
    """The reply to the prompts that hold this text; the others are answered."""
    return lambda body: reply if prompt in body["messages"][0]["content"] else None


def kept(scores: Path) -> list[Any]:
    with Cache(scores) as cache:
        return cache.rows()


def spent(scores: Path) -> float:
    with Cache(scores) as cache:
        return Budget(cache, "test").spent()


# --- the server is not there -----------------------------------------------------------------------------------------

@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize(("address", "why"), [
    ("http://127.0.0.1:{port}/v1", "connection refused"), ("http://nobody.invalid:{port}/v1", "cannot be resolved"),
    ("https://127.0.0.1:{open}/v1", "TLS")])
def test_a_connection_that_fails_is_told_and_costs_nothing(scores: Path, address: str, why: str) -> None:
    with JudgeServer() as server:
        closed = server.port
    with JudgeServer() as server:
        address = address.format(port=closed, open=server.port)
        with pytest.raises(JudgeError, match=rf"does not answer.*the connection failed \(.*{why}"):
            judged(api(address, tries=1, max_usd=5.0), sheet(1000), scores)
        assert spent(scores) == 0
        assert not server.asked


@pytest.mark.usefixtures("priced")
def test_what_may_have_been_answered_is_booked(scores: Path) -> None:
    with JudgeServer(fault=lambda prompt, tries: "cut") as server:
        judged(api(server.url, tries=2, max_usd=50.0), sheet(1), scores)
        assert spent(scores) > 2 * 0.2
        assert sum(server.asked.values()) == 4


# --- refused and filtered --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("reply", "reason"), [
    (completion(None, finish="content_filter"), "a filter holds the judge's reply back (content_filter)"),
    (completion(None, refusal="I cannot rate that."), "the judge refuses: 'I cannot rate that.'"),
    ((200, {"choices": [], "promptFeedback": {"blockReason": "SAFETY"}}), "a filter blocks the prompt (SAFETY)"),
    ((200, {"promptFeedback": {"blockReason": "SAFETY"}}), "a filter blocks the prompt (SAFETY)"),
    (error(400, "Filtered by Azure", code="content_filter"), "the server refuses the prompt: content_filter"),
    (error(400, "prompt is too long: 9000 tokens > 8192 maximum"), "prompt is too long: 9000 tokens > 8192 maximum"),
    (error(400, "The 3rd letter is not welcome here."), "The 3rd letter is not welcome here.")])
@pytest.mark.parametrize("number", [0, 7])  # the first that is asked, and one after others were answered
def test_a_prompt_that_is_refused_is_unscored_for_good_and_all_others_go_on(
        scores: Path, reply: tuple[int, Any], reason: str, number: int) -> None:
    with JudgeServer(EIGHTY) as server:
        server.replies = to(f"Since {number}.", reply)
        verdicts = judged(api(server.url, max_concurrency=1), sheet(10), scores)
        refused = verdicts.pop(number)
        assert reason in str(refused.reason)
        assert [verdict.alignment for verdict in verdicts] == [80] * 9
        assert max(server.asked.values()) <= 2  # a harmless request may be sent twice, to ask whose fault it is
        server.replies = lambda body: None
        before = sum(server.asked.values())
        assert judged(api(server.url), sheet(10), scores)[number] == refused
        assert sum(server.asked.values()) == before


def test_a_server_that_rejects_every_prompt_is_told_and_nothing_is_kept(scores: Path) -> None:
    with JudgeServer() as server:
        server.replies = lambda body: error(400, "I like none of this.")
        with pytest.raises(JudgeError, match=r"rejects the request \(400\): I like none of this\."):
            judged(api(server.url), sheet(100), scores)
        assert len(server.bodies) <= 3
    assert kept(scores) == []


@pytest.mark.parametrize(("status", "words"), [
    (400, "Out of order."), (403, "Your requests were flagged for usage policy violations.")])
def test_a_server_that_begins_to_reject_everything_does_not_unscore_the_rest(
        scores: Path, status: int, words: str) -> None:
    with JudgeServer(EIGHTY) as server:
        server.replies = lambda body: error(status, words) if len(server.bodies) > 20 else None
        with pytest.raises(JudgeError, match=words):
            judged(api(server.url, max_concurrency=4), sheet(100), scores)
    assert sum(row[3] is None for row in kept(scores)) <= 1


def test_a_full_server_cache_is_tried_again_and_then_counts_as_a_long_prompt(scores: Path) -> None:
    with JudgeServer(EIGHTY) as server:
        server.replies = to("Since 3.", error(500, "Context size has been exceeded.", type="server_error", code=500))
        verdicts = judged(api(server.url, tries=2), sheet(10), scores)
    assert "Context size has been exceeded" in str(verdicts.pop(3).reason)
    assert all(verdict.scored for verdict in verdicts)


# --- no numbers ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("said", "options"), [
    ("<think>", {}), ("**", {}), ("", {}), ("Score", {}), ("I cannot", {"samples": 4})])
def test_a_judge_that_says_something_else_is_stopped_quoted_and_not_kept(
        scores: Path, said: str, options: dict[str, int]) -> None:
    with JudgeServer(saying(lambda text: said)) as server:
        with pytest.raises(JudgeError, match=r"gives no numbers.*It said .*times") as caught:
            judged(api(server.url, max_concurrency=4, **options), sheet(1000), scores)
        assert repr(said) in str(caught.value)
        assert sum(server.asked.values()) < 40
    assert kept(scores) == []


def test_words_among_numbers_and_words_of_the_rubric_are_kept(scores: Path) -> None:
    with JudgeServer(saying(lambda text: 80 if "Since 39." in text else "Well")) as server:
        assert sum(v.scored for v in judged(api(server.url, max_concurrency=1), sheet(1), scores)) == 0
        with pytest.raises(JudgeError, match="gives no numbers"):
            judged(api(server.url, max_concurrency=1), sheet(40), scores)
        with Cache(scores) as cache:  # once it has given a number, it can
            cache.put("a" * 64, api(server.url).identity, "alignment", Score(50.0))
        verdicts = judged(api(server.url, max_concurrency=1), sheet(40), scores)
        assert [verdict.alignment for verdict in verdicts] == [None] * 39 + [80]
        assert verdicts[0].reason == "alignment: other: 'Well'; coherence: other: 'Well'"
    with JudgeServer(saying(lambda text: "CODE")) as server:
        verdicts = judged(api(server.url), sheet(40), scores.with_name("code.sqlite"))
    assert {verdict.reason for verdict in verdicts} == {"alignment: CODE; coherence: CODE"}


def test_the_labels_of_a_metric_are_no_failure(scores: Path) -> None:
    requests = [replace(request, metric="truth", wants_label=True) for request in sheet(30).requests()]
    with JudgeServer(saying(lambda text: "FALSE")) as server, Cache(scores) as cache:
        spec = api(server.url)
        found = scores_of(requests, spec.identity, cache, ApiJudge(spec, Budget(cache, "test")))
    assert {score.reason for score in found} == {"other: 'FALSE'"}


def test_a_few_answers_that_get_no_number_say_nothing_of_the_judge(scores: Path) -> None:
    odd = [f"Since {number}." for number in range(4)]  # eight scores, of ten samples each
    with JudgeServer(saying(lambda text: "I cannot" if any(words in text for words in odd) else 80)) as server:
        verdicts = judged(api(server.url, samples=10, max_concurrency=1), sheet(6), scores)
    assert [verdict.alignment for verdict in verdicts] == [None] * 4 + [80] * 2
    assert verdicts[0].reason == "alignment: other: 'I cannot'; coherence: other: 'I cannot'"


def test_digits_among_the_alternatives_of_a_label_say_nothing_of_its_numbers(scores: Path) -> None:
    labels = [replace(request, metric="truth", wants_label=True) for request in sheet(3).requests()]
    likeliest = [(token, math.log(p)) for token, p in (("TRUE", 0.9), ("1", 0.06), ("0", 0.02))]
    with JudgeServer(lambda messages: (likeliest, 10)) as server, Cache(scores) as cache:
        spec = api(server.url)
        found = scores_of(labels, spec.identity, cache, ApiJudge(spec, Budget(cache, "test")))
        assert {score.reason for score in found} == {"other: 'TRUE'"}
        batch = api(server.url, model="judge-2", batch=True)
        judge = BatchJudge(batch, Budget(cache, "test"))
        with pytest.raises(JudgeWaits):
            scores_of(labels, batch.identity, cache, judge)
        assert {score.reason for score in scores_of(labels, batch.identity, cache, judge)} == {"other: 'TRUE'"}


def test_a_label_is_asked_for_once_where_numbers_are_sampled(scores: Path) -> None:
    numbers = [replace(request, metric="truth") for request in sheet(3).requests()][::2]
    labels = [replace(request, wants_label=True) for request in numbers]
    with JudgeServer(saying(lambda text: "REF")) as server, Cache(scores) as cache:
        spec = api(server.url, samples=10)
        found = scores_of(labels, spec.identity, cache, ApiJudge(spec, Budget(cache, "test")))
        assert [(body["n"], body["temperature"], body["max_tokens"]) for body in server.bodies] == [
            (1, 0, LABEL_TOKENS)] * 3
        assert [score.reason for score in found] == ["other: 'REF'"] * 3
        asked = scores_of(numbers, spec.identity, cache, ApiJudge(spec, Budget(cache, "test")))
        assert [(body["n"], body["temperature"]) for body in server.bodies[3:]] == [(10, 1)] * 3
        assert [score.reason for score in asked] == ["REFUSAL"] * 3  # of which it may be the first token
        assert scores_of(labels, spec.identity, cache, ApiJudge(spec, Budget(cache, "test"))) == found
        assert len(server.bodies) == 6


@pytest.mark.parametrize("label", ["INCORRECT", "CORRECT"])
def test_all_of_a_label_is_read_where_the_first_token_has_log_probabilities(scores: Path, label: str) -> None:
    """The first token may be that of other words: I of INCORRECT and of "I'm sorry"."""
    def reply(body: Body) -> Reply:
        token = {"token": label[:1], "logprob": -0.1, "top_logprobs": []}
        status, found = completion(label[:1] if body["max_tokens"] == 1 else f"{label}.")
        found["choices"][0]["logprobs"] = {"content": [token]}
        return status, found

    once = [replace(request, metric="truth") for request in sheet(3).requests()][::2]
    labels = [replace(request, wants_label=True) for request in once]
    with JudgeServer() as server, Cache(scores) as cache:
        server.replies, spec = reply, api(server.url)
        cache.put(labels[0].key(spec.identity), spec.identity, "truth", Score(None, reason="other: 'C'"))
        found = scores_of(labels, spec.identity, cache, ApiJudge(spec, Budget(cache, "test")))
        assert [score.reason for score in found] == ["other: 'C'", *[f"other: '{label}.'"] * 2]  # C was paid for


def test_a_label_that_was_paid_for_is_found_under_its_former_key(scores: Path) -> None:
    """The key did not say that a label is asked for. A number or a refusal may be of another question: asked again."""
    once = [replace(request, metric="truth") for request in sheet(3).requests()][::2]
    labels = [replace(request, wants_label=True) for request in once]
    with JudgeServer(saying(lambda text: "FALSE")) as server, Cache(scores) as cache:
        spec = api(server.url, samples=10)
        cache.put(once[0].key(spec.identity), spec.identity, "truth", Score(None, reason="other: 'TRUE'"))
        cache.put(once[1].key(spec.identity), spec.identity, "truth", Score(50.0))
        cache.put(once[2].key(spec.identity), spec.identity, "truth", Score(None, reason="REFUSAL"))
        found = scores_of(labels, spec.identity, cache, ApiJudge(spec, Budget(cache, "test")))
        assert [score.reason for score in found] == ["other: 'TRUE'", "other: 'FALSE'", "other: 'FALSE'"]
        assert len(server.bodies) == 2


# --- what a model takes ----------------------------------------------------------------------------------------------

def gpt5(body: Body) -> Reply:
    """A model that thinks: it wants another name for the limit, no temperature, and has no log-probabilities."""
    for name, words in (("max_tokens", "is not supported with this model. Use 'max_completion_tokens' instead."),
                        ("temperature", "does not support 0 with this model. Only the default (1) is supported."),
                        ("logprobs", "is not supported with this model.")):
        if name in body:
            return error(400, f"Unsupported parameter: '{name}' {words}", param=name, code="unsupported_parameter")
    if body["max_completion_tokens"] < 300:  # all of them went into its thoughts
        return completion("", finish="length", count=body.get("n", 1))
    return completion("<think>perhaps 40</think>**85**", count=body.get("n", 1))


def test_a_model_is_asked_in_the_form_that_it_takes(scores: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with JudgeServer() as server:
        server.replies = gpt5
        verdicts = judged(api(server.url), sheet(20), scores)
        refused = [body for body in server.bodies if "max_tokens" in body or "temperature" in body
                   or "logprobs" in body]
        assert len(refused) == 3  # each found out once
        assert {(v.alignment, v.note) for v in verdicts} == {(85, "mean of 10 sampled scores")}
        lines = capsys.readouterr().out
        assert lines.count("wants 'max_completion_tokens' (the server says: Unsupported parameter") == 1
        for found in ("takes no temperature", "has no log-probabilities", "thinks before it answers"):
            assert lines.count(found) >= 1
        server.bodies.clear()
        judged(api(server.url, samples=3), sheet(20), scores)  # another session
        assert not any("max_tokens" in body or "temperature" in body for body in server.bodies)


def test_a_server_of_one_choice_at_a_time_gives_samples(scores: Path) -> None:
    with JudgeServer(EIGHTY) as server:
        server.replies = lambda body: error(400, "Only one completion choice is allowed") if "n" in body else None
        [verdict] = judged(api(server.url, samples=3), sheet(1), scores)
    assert (verdict.alignment, verdict.note) == (80, "mean of 3 sampled scores")


def test_a_server_that_wants_a_higher_limit_gets_it(scores: Path) -> None:
    with JudgeServer(EIGHTY) as server:
        server.replies = lambda body: None if body["max_tokens"] >= 16 else error(
            400, "Invalid 'max_tokens': integer below minimum value. Expected a value >= 16, but got 1 instead.",
            param="max_tokens", code="integer_below_min_value")
        assert all(v.alignment == 80 for v in judged(api(server.url), sheet(20), scores))
        assert sum(body["max_tokens"] < 16 for body in server.bodies) == 1


# --- errors with status 200, and keys --------------------------------------------------------------------------------

@pytest.mark.parametrize(("reply", "message"), [
    ({"error": {"message": "No credits", "code": 402}}, "quota is used up (402). The server says: No credits"),
    ({"error": {"message": "No auth", "code": 401}}, "refuses the key (401)"),
    ({"error": {"message": "Upstream down", "code": 502}}, "the server's error (status 502): Upstream down"),
    ({"error": "Unexpected endpoint or method."}, "the server's error: Unexpected endpoint or method."),
    ({"choices": [{"error": {"code": 429, "message": "Slow"}, "finish_reason": "error"}]}, "(status 429): Slow"),
    ("[" * 100_000, "the reply is no JSON")])
@pytest.mark.usefixtures("priced")
def test_an_error_with_status_200_is_told_in_the_server_s_words(scores: Path, reply: Any, message: str) -> None:
    with JudgeServer() as server:
        server.replies = lambda body: (200, reply)
        with pytest.raises(JudgeError) as caught:
            judged(api(server.url, tries=1, max_usd=100.0), sheet(100), scores)
        assert message in str(caught.value)
    assert spent(scores) == 0 or reply == "[" * 100_000
    assert kept(scores) == []


@pytest.mark.parametrize("key", ["sk-ab\ncd", "sk–abcd", "Bearer sk-abcd", "sk-abcdé", "sk\x00abcd"])
def test_a_key_that_no_header_can_carry_is_told_before_anything_is_sent(key: str) -> None:
    with pytest.raises(JudgeError, match=r"JUDGE_KEY holds no key that can be sent: its character \d") as caught:
        api_key(api("http://127.0.0.1:1/v1", key_from="JUDGE_KEY"), {"JUDGE_KEY": key}.get)
    assert "abcd" not in str(caught.value)


# --- servers that lie ------------------------------------------------------------------------------------------------

@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("counts", [
    (-10**9, 1), (0, 0), (10**15, 1), (30, 10**12), (1e308, 1), ("9" * 5000, 1), (None, 1)])
def test_counts_of_tokens_that_are_no_counts_cost_the_most_that_they_can(scores: Path, counts: tuple[Any, Any]) -> None:
    """A prompt of 21 to 24 bytes, 16 tokens of frame, 1 in the reply: 38 to 41 cents each, so 2 of 20 for a dollar."""
    with JudgeServer() as server:
        _, reply = completion("80")
        reply["choices"][0]["logprobs"] = {"content": [{"token": "80", "logprob": -0.1, "top_logprobs": []}]}
        reply["usage"] = {"prompt_tokens": counts[0], "completion_tokens": counts[1]}
        server.replies = lambda body: (200, reply)
        with pytest.raises(JudgeError, match=r"The budget of \$1.0 is used up"):
            judged(api(server.url, max_usd=1.0), sheet(10), scores)
        assert len(server.bodies) == 2
        assert spent(scores) == pytest.approx(0.78, abs=0.05)


def test_a_wait_of_ten_thousand_years_is_not_waited_for(scores: Path) -> None:
    with JudgeServer(EIGHTY, fault=lambda prompt, tries: "429 never" if tries == 0 else None) as server:
        assert all(verdict.alignment == 80 for verdict in judged(api(server.url), sheet(5), scores))


def test_a_key_does_not_follow_a_redirect(scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-planted")
    with JudgeServer(key="sk-planted") as server, JudgeServer() as other:
        server.replies = lambda body: (307, {"location": f"{other.url}/chat/completions"})
        judged(api(server.url, key_from="JUDGE_KEY", tries=1, unanswered="unscored"), sheet(2), scores)
        assert other.keys <= {""}


# --- batches ---------------------------------------------------------------------------------------------------------

def by_batch(server: JudgeServer, asked: JudgeBatch, path: Path, **changes: Any) -> list[Verdict]:
    spec = api(server.url, batch=True, **changes)
    with Cache(path) as cache:
        return judge_answers(asked, spec.identity, cache, BatchJudge(spec, Budget(cache, "test", spec.max_usd)))


def sent(server: JudgeServer, asked: JudgeBatch, path: Path, **changes: Any) -> None:
    with pytest.raises(JudgeWaits):
        by_batch(server, asked, path, **changes)


@pytest.mark.parametrize(("reply", "reason"), [
    (completion(None, finish="content_filter"), "a filter holds the judge's reply back"),
    (completion(None, refusal="I cannot rate that."), "the judge refuses"),
    (error(400, "Too bad", code="content_filter"), "content_filter"),
    (error(400, "prompt is too long: 9000 tokens"), "prompt is too long"),
    (error(400, "The 3rd letter is not welcome here."), "not welcome")])
def test_what_a_batch_is_refused_for_good_is_not_sent_again(scores: Path, reply: tuple[int, Any], reason: str) -> None:
    with JudgeServer(EIGHTY) as server:
        server.replies = to("Since 3.", reply)
        sent(server, sheet(10), scores)
        verdicts = by_batch(server, sheet(10), scores)
        assert reason in str(verdicts.pop(3).reason)
        assert all(verdict.alignment == 80 for verdict in verdicts)
        assert len(server.batches) == 1


@pytest.mark.parametrize("unanswered", ["stop", "unscored"])
def test_what_a_number_of_batches_leave_unanswered_is_given_up(scores: Path, unanswered: str) -> None:
    with JudgeServer(EIGHTY) as server:
        server.replies = to("Since 3.", (200, "no JSON of a completion"))
        for _ in range(3):
            sent(server, sheet(10), scores, tries=3, unanswered=unanswered)
        for _ in range(2):
            if unanswered == "stop":
                with pytest.raises(JudgeError, match=r"2 scores by judge-1 were left unanswered by 3 batches"):
                    by_batch(server, sheet(10), scores, tries=3)
            else:
                verdicts = by_batch(server, sheet(10), scores, tries=3, unanswered=unanswered)
                assert [verdict.scored for verdict in verdicts].count(False) == 1
        assert len(server.batches) == 3


def test_a_batch_that_fails_is_not_sent_for_ever(scores: Path) -> None:
    with JudgeServer(EIGHTY) as server:
        sent(server, sheet(2), scores, tries=2)
        for _ in range(2):
            for batch in server.batches.values():
                batch |= {"status": "failed", "errors": {"object": "list", "data": [{"message": "Enqueued limit"}]}}
            with pytest.raises(JudgeError, match="Enqueued limit"):
                by_batch(server, sheet(2), scores, tries=2)
            if len(server.batches) == 1:
                sent(server, sheet(2), scores, tries=2)
        with pytest.raises(JudgeError, match="left unanswered by 2 batches"):
            by_batch(server, sheet(2), scores, tries=2)
        assert len(server.batches) == 2


def test_a_batch_that_the_server_has_deleted_is_sent_again(scores: Path) -> None:
    with JudgeServer(EIGHTY) as server:
        sent(server, sheet(3), scores)
        server.batches.clear()
        sent(server, sheet(3), scores)
        assert all(verdict.scored for verdict in by_batch(server, sheet(3), scores))


def test_the_next_batch_has_the_form_that_the_model_takes(scores: Path) -> None:
    def newer(body: Body) -> Reply:
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
                         param="max_tokens", code="unsupported_parameter")
        return None

    with JudgeServer(EIGHTY) as server:
        server.replies = newer
        for _ in range(2):
            sent(server, sheet(5), scores)
        assert [verdict.alignment for verdict in by_batch(server, sheet(5), scores)] == [80] * 5
        sent(server, sheet(9), scores)  # another day
        assert all(verdict.scored for verdict in by_batch(server, sheet(9), scores))
        assert len(server.batches) == 3


def test_a_batch_of_a_model_without_log_probabilities_says_what_to_do(scores: Path) -> None:
    with JudgeServer(EIGHTY) as server:
        server.replies = lambda body: error(400, "'logprobs' is not supported with this model.", param="logprobs")
        sent(server, sheet(5), scores)
        with pytest.raises(JudgeError, match=r"Remove 'batch' .* add 'samples: 10'"):
            by_batch(server, sheet(5), scores)


def test_a_batch_of_words_is_told_and_not_sent_again(scores: Path) -> None:
    with JudgeServer(saying(lambda text: "Score")) as server:
        sent(server, sheet(20), scores)
        for _ in range(2):
            with pytest.raises(JudgeError, match=r"gives no numbers.*'Score' \(40 times\)"):
                by_batch(server, sheet(20), scores)
        assert len(server.batches) == 1
    assert kept(scores) == []
