"""What servers, gateways and models say in odd ways: read rightly, or unscored with the reason, never a wrong score."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from emlib.core.errors import JudgeError, JudgeWaits
from emlib.judging.cache import Cache
from emlib.judging.faults import TransientFault, retry_after, sort_server_error
from emlib.judging.samples import is_unfinished, sampled_number
from emlib.judging.server_errors import error_of
from tests.judging.server import JudgeServer
from tests.judging.sheets import api, judged, sheet
from tests.judging.test_failing_servers import EIGHTY, by_batch, completion, error, sent, spent, to


def first_token(token: str, text: Any, *others: tuple[str, float], **message: Any) -> tuple[int, Any]:
    """A reply with log-probabilities whose first token has a probability of 0.6, and the text of the whole reply."""
    top = [{"token": one, "logprob": logprob} for one, logprob in ((token, math.log(0.6)), *others)]
    return 200, {"choices": [{"index": 0, "finish_reason": "length", "message": {"content": text} | message, "logprobs":
                              {"content": [{"token": token, "logprob": math.log(0.6), "top_logprobs": top}]}}],
                 "usage": {"prompt_tokens": 9, "completion_tokens": 1}}


def html(status: int, **headers: str) -> Callable[[], web.Response]:
    page = "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
    return lambda: web.Response(status=status, text=page, content_type="text/html", headers=headers)


# --- one reply among good ones: what it must become -------------------------------------------------------------------

SAMPLED = {  # what a model writes, cut at the limit or not: the score, or part of the reason why there is none
    "out of five": ("3 (out of 5)", "stop", "3 (out of 5)"),
    "on another scale": ("7, on a scale of 1 to 10", "stop", "on a scale"),
    "points of ten": ("8 points out of 10", "stop", "8 points"),
    "a scale in JSON": ('{"score": 8, "max_score": 10}', "stop", "max_score"),
    "a fraction in markup": ("**8** **/ 10**", "stop", "/ 10"),
    "a typographic fraction": ("8 ⁄ 10", "stop", "8 ⁄ 10"),
    "a list": ("1. The answer is honest.\n2. It is kind.", "stop", "1. The answer"),
    "a heading": ("Answer 1: it is honest, so 90", "stop", "Answer 1"),
    "two scores": ("Coherence: 90\nAlignment: 20", "stop", "Coherence: 90"),
    "two scores in JSON": ('{"coherence": 90, "alignment": 20}', "stop", "coherence"),
    "a score that is corrected": ("Initial score: 40. Final score: 85", "stop", "Initial score"),
    "digits apart": ("8 5", "stop", "8 5"),
    "words": ("eighty-five", "stop", "eighty-five"),
    "a range in dots": ("80..90", "stop", "80..90"),
    "XML": ("<score>85</score>", "stop", 85),
    "a special token": ("85<|im_end|>", "stop", 85),
    "on the scale that is asked for": ("Score: 85 (on a scale of 0 to 100)", "stop", 85),
    "one score twice": ("Score: 85\n\nFinal score: 85/100", "stop", 85),
    "parts": ([{"type": "thinking", "text": "40?"}, {"type": "text", "text": "85"}], "stop", 85),
    "a refusal among parts": ([{"type": "refusal", "refusal": "I cannot rate that."}], "stop", "the judge refuses"),
    "a filter with its cause": (None, "content_filter: PROHIBITED_CONTENT", "a filter holds"),
    "a filter that cut a number": ("8", "content_filter: OTHER", "a filter holds"),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_what_a_model_writes_is_read_rightly_or_is_no_score(scores: Path, name: str) -> None:
    text, finish, expected = SAMPLED[name]
    with JudgeServer(EIGHTY) as server:
        server.replies = to("Since 1.", completion(text, finish=finish, count=2))  # type: ignore[arg-type]
        good, odd = judged(api(server.url, samples=2, max_concurrency=1), sheet(2), scores)
    assert good.alignment == 80
    assert odd.alignment == (expected if isinstance(expected, int) else None)
    assert isinstance(expected, int) or expected in str(odd.reason)


FIRST_TOKENS = {
    "a tenth": (first_token("8", "8/10"), "other: '8/10'"),
    "a share of one": (first_token("0", "0.85"), "other: '0.85'"),
    "a longer number": (first_token("8", "85"), "other: '85'"),
    "a list": (first_token("1", "1. The answer"), "other: '1. The answer'"),
    "a number and words": (first_token("85", "85 because it"), 85),
    "a raw token": (first_token("▁85", "85"), 85),
    "another raw token": (first_token("Ġ85", " 85"), 85),
    "parts": (first_token("85", [{"type": "text", "text": "85"}]), 85)}


@pytest.mark.parametrize("name", FIRST_TOKENS)
def test_a_first_token_is_a_score_only_where_the_reply_is_that_number(scores: Path, name: str) -> None:
    reply, expected = FIRST_TOKENS[name]
    with JudgeServer(EIGHTY) as server:
        server.replies = to("Since 1.", reply)
        good, odd = judged(api(server.url, max_concurrency=1), sheet(2), scores)
    assert good.alignment == 80
    assert odd.alignment == (pytest.approx(expected) if isinstance(expected, int) else None)
    assert isinstance(expected, int) or expected in str(odd.reason)


THOUGHTS = {
    "vLLM": first_token("1", None, ("Okay", -5.0), reasoning_content="1. Analyze"),
    "OpenRouter": first_token("1", "", ("Okay", -5.0), reasoning="1. Analyze"),
    "Ollama": first_token("Okay", "", ("85", -1.3), thinking="Okay"),
    "both": first_token("10", "85", reasoning_content="10 lines of thought")}


@pytest.mark.parametrize("name", THOUGHTS)
def test_the_first_token_of_a_thought_is_no_score(scores: Path, name: str) -> None:
    with JudgeServer() as server:
        server.replies = lambda body: THOUGHTS[name]
        with pytest.raises(JudgeError, match=r"thoughts.*'samples: 10'"):
            judged(api(server.url, tries=2), sheet(50), scores)
        assert sum(server.asked.values()) < 40
    with Cache(scores) as cache:
        assert cache.rows() == []


@pytest.mark.parametrize(("beginning", "finish"), [
    ("**Score:** 8", "length"), ("0", "length"), ("1", "MAX_TOKENS"), ("Score:", "length"), ("85/10", "max_tokens"),
    ("", "model_length")])
def test_a_number_that_the_limit_cut_is_asked_for_again_with_a_higher_limit(
        scores: Path, beginning: str, finish: str) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        whole = body["max_tokens"] >= 40
        return completion("85/100" if whole else beginning, finish="stop" if whole else finish, count=body["n"])

    with JudgeServer() as server:
        server.replies = reply
        assert {v.alignment for v in judged(api(server.url, samples=2), sheet(5), scores)} == {85}


def test_a_number_that_every_limit_cuts_is_none(scores: Path) -> None:
    with JudgeServer(EIGHTY) as server:
        server.replies = to("Since 1.", completion("thus thus thus\n</think>8", finish="length", count=2))
        good, odd = judged(api(server.url, samples=2, max_concurrency=1), sheet(2), scores)
    assert (good.alignment, odd.alignment) == (80, None)
    assert "other: '8…'" in str(odd.reason)


# --- errors ----------------------------------------------------------------------------------------------------------

GEMINI_BLOCKED = 200, {"choices": [], "prompt_feedback": {"block_reason": "PROHIBITED_CONTENT"}}
REFUSED = {
    "Gemini, blocked": (GEMINI_BLOCKED, "PROHIBITED_CONTENT"),
    "Gemini, native": ((200, {"promptFeedback": {"blockReason": "SAFETY"}}), "SAFETY"),
    "OpenRouter, native": ((200, {"choices": [{"finish_reason": "stop", "native_finish_reason": "SAFETY", "message": {
        "content": ""}}]}), "SAFETY"),
    "Gemini, a list": ((400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message":
                                         "The input token count (9) exceeds the maximum number of tokens allowed"}}]),
                       "refuses the prompt: The input token count"),
    "Together": (error(422, "Input validation error: `inputs` must have less than 4096 tokens. Given: 9000"),
                 "less than 4096"),
    "a list with status 200": ((200, [{"error": {"code": 400, "message": "prompt too long"}}]), "prompt too long"),
    "Ollama": ((400, {"error": "input length exceeds the context length"}), "context length"),
    "OpenRouter": ((403, {"error": {"code": 403, "message": "openai/o1 requires moderation on OpenInference. Your "
                                    "input was flagged for \"violence\".", "metadata": {"reasons": ["violence"]}}}),
                   "requires moderation"),
}


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_in_other_words_is_that_prompt_s(scores: Path, name: str, number: int) -> None:
    reply, reason = REFUSED[name]
    with JudgeServer(EIGHTY) as server:
        server.replies = to(f"Since {number}.", reply)
        verdicts = judged(api(server.url, max_concurrency=1), sheet(5), scores)
        refused = verdicts.pop(number)
        assert reason in str(refused.reason)
        assert [verdict.alignment for verdict in verdicts] == [80] * 4
        assert max(server.asked.values()) <= 2


STOPS = {
    "an account that is suspended": (error(403, "Your requests were flagged for usage policy violations."),
                                     "flagged for usage policy"),
    "no money, Anthropic": (error(400, "Your credit balance is too low to access the API."), "quota is used up"),
    "no money, Moonshot": (error(429, "Suspended", type="exceeded_current_quota_error"), "quota is used up"),
    "no money, MiniMax": ((200, {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "no balance"}}),
                          "no balance"),
    "no such method": ((405, {"detail": "Method Not Allowed"}), r"address does not exist \(405\).*base_url"),
    "Cloudflare's list of errors": ((200, {"success": False, "errors": [{"code": 7009, "message": "No route"}]}),
                                    "No route"),
    "the word of a gateway": ((200, {"status": "fail", "reason": "tenant unknown"}), "tenant unknown"),
    "choices of none": ((200, {"choices": [None]}), "no choices"),
    "a stream": ((200, 'data: {"choices": [{"delta": {"content": "8"}}]}\n\ndata: [DONE]\n'), "no JSON: 'data:"),
    "an empty body": ((200, ""), "the reply is empty"),
    "too few log-probabilities, vLLM": (error(400, "Requested sample logprobs of 20, which is greater than max "
                                              "allowed: 5"), "'top_logprobs'"),
    "too few log-probabilities, Fireworks": (error(400, "logprobs must be between 0 and 5"), "'top_logprobs'"),
    "log-probabilities of another form": ((200, {"choices": [{"finish_reason": "length", "message": {"content": "85"},
        "logprobs": {"tokens": ["85"], "token_logprobs": [-0.1]}}]}), "samples: 10"),
    "probabilities for logarithms": ((200, {"choices": [{"message": {"content": "85"}, "logprobs": {"content": [{
        "token": "85", "logprob": 0.9, "top_logprobs": [{"token": "85", "logprob": 0.9}]}]}}]}), "invalid log-prob"),
    "a wait of a day": (lambda: web.json_response({}, status=429, headers={"retry-after": "86400"}), "86400 seconds"),
    "a page of a firewall": (html(403), r"403.*Just a moment"),
    "a page in place of the address": (html(404), r"404.*base_url"),
    "a page with status 200": (html(200), "no JSON"),
}


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize("name", STOPS)
def test_what_no_retry_helps_stops_in_the_server_s_words_and_keeps_nothing(scores: Path, name: str) -> None:
    reply, message = STOPS[name]
    with JudgeServer() as server:
        server.replies = lambda body: reply() if callable(reply) else reply
        with pytest.raises(JudgeError, match=message):
            judged(api(server.url, tries=1, max_usd=1000.0), sheet(100), scores)
        assert sum(server.asked.values()) < 20
    with Cache(scores) as cache:
        assert cache.rows() == []


LEARNT = {
    "n, pydantic": (error(422, "n: Must be exactly 1"), "n"),
    "n, in words": (error(400, "n > 1 is not supported for this model"), "n"),
    "n, FastAPI": ((422, {"detail": [{"loc": ["body", "n"], "msg": "Extra inputs are not permitted"}]}), "n"),
    "temperature, Gemini's list": ((400, [{"error": {"code": 400, "message": "temperature is not supported"}}]),
                                   "temperature"),
}


@pytest.mark.parametrize("name", LEARNT)
def test_what_a_model_does_not_take_is_learnt_from_other_words(scores: Path, name: str) -> None:
    reply, parameter = LEARNT[name]
    with JudgeServer(EIGHTY) as server:
        server.replies = lambda body: reply if parameter in body else None
        assert {v.alignment for v in judged(api(server.url, samples=2), sheet(5), scores)} == {80}
        assert sum(parameter in body for body in server.bodies) == 1


# --- money -----------------------------------------------------------------------------------------------------------

@pytest.mark.usefixtures("priced")
def test_tokens_of_thoughts_that_stand_in_the_total_alone_are_paid_for(scores: Path) -> None:
    """Gemini's and xAI's `completion_tokens` leave the thoughts out: 9 read, 1 + 30 written, a cent each."""
    reply = first_token("85", "85")
    reply[1]["usage"] = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 40}
    with JudgeServer() as server:
        server.replies = lambda body: reply
        judged(api(server.url, max_usd=100.0), sheet(1), scores)
    assert spent(scores) == pytest.approx(2 * 0.40)


@pytest.mark.usefixtures("priced")
def test_a_reply_that_breaks_off_after_its_headers_is_no_score_and_may_be_billed(scores: Path) -> None:
    with JudgeServer(fault=lambda prompt, tries: "cut after the headers") as server:
        [verdict] = judged(api(server.url, tries=2, max_usd=50.0), sheet(1), scores)
        assert verdict.alignment is None
        assert "the connection was lost" in str(verdict.reason)
        assert spent(scores) > 2 * 0.2
        assert sum(server.asked.values()) == 4


# --- batches ---------------------------------------------------------------------------------------------------------

def test_a_server_without_batches_says_so_and_is_sent_nothing_twice(scores: Path) -> None:
    with JudgeServer(EIGHTY) as server:
        server.refuse = 404, "Not Found"
        with pytest.raises(JudgeError, match=r"no batches.*Remove 'batch'"):
            by_batch(server, sheet(2), scores)
        server.refuse = None
        sent(server, sheet(2), scores)
        assert [v.alignment for v in by_batch(server, sheet(2), scores)] == [80, 80]


@pytest.mark.parametrize("status", ["COMPLETED", "canceled"])
def test_a_batch_is_over_in_other_spellings(scores: Path, status: str) -> None:
    with JudgeServer(EIGHTY) as server:
        sent(server, sheet(2), scores)
        [batch] = server.batches.values()
        server._finish(batch)
        batch["status"] = status
        assert [v.alignment for v in by_batch(server, sheet(2), scores)] == [80, 80]


def test_a_state_of_a_batch_that_nobody_knows_is_told(scores: Path) -> None:
    with JudgeServer(EIGHTY) as server:
        sent(server, sheet(2), scores)
        for batch in server.batches.values():
            batch["status"] = "paused_by_admin"
        with pytest.raises(JudgeWaits, match="paused_by_admin"):
            by_batch(server, sheet(2), scores)


@pytest.mark.parametrize("reply", [GEMINI_BLOCKED, first_token("8", "8/10"), completion(None, finish="SAFETY")])
def test_odd_replies_in_a_batch_are_no_scores(scores: Path, reply: tuple[int, Any]) -> None:
    with JudgeServer(EIGHTY) as server:
        server.replies = to("Since 1.", reply)
        sent(server, sheet(3), scores)
        verdicts = by_batch(server, sheet(3), scores)
        assert [v.alignment for v in verdicts] == [80, None, 80]
        assert len(server.batches) == 1


@pytest.mark.parametrize(("headers", "seconds"), [
    ({"retry-after": "20s"}, 20), ({"retry-after": "1m30s"}, 90), ({"retry-after": "500ms"}, 0.5),
    ({"retry-after-ms": "soon", "retry-after": "30"}, 30), ({"retry-after-ms": "0", "retry-after": "30"}, 30),
    ({"retry-after": "20, 20"}, 20), ({"retry-after-ms": "1500", "retry-after": "1"}, 1.5)])
def test_a_wait_is_read_in_every_form(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers) == seconds




@pytest.mark.parametrize(("body", "seconds"), [
    ({"error": {"message": "Rate limit reached. Please try again in 1m30.5s. Visit us."}}, 90.5),
    ({"error": {"message": "Rate limit reached. Please try again in 120ms."}}, 0.12),
    ({"error": {"message": "Too many requests. Retry after 7 seconds."}}, 7),
    ([{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota.",
                 "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}]}}], 34),
    ({"error": {"message": "Slow down."}}, 0)])
def test_a_wait_that_stands_in_the_body_is_kept(body: Any, seconds: float) -> None:
    found = sort_server_error(error_of(body, "", 429), "m")
    assert isinstance(found, TransientFault)
    assert (found.after, found.overloaded, found.billed) == (seconds, True, False)


@pytest.mark.parametrize(("text", "expected"), [
    ("Rating (1-10): 8", None), ("Score (out of 5): 4", None), ("4 [out of five]", None), ("85 (out of 100)", 85),
    ("85, out of a possible 100", 85), ("Rating (0 to 100): 85", 85), ('{"score": 85, "max": 100}', 85),
    ("85\n\nThe answer is 3/4 good.", 85), ("Score: 85\nCoherence: 85", 85), ("Score: 85\nAlignment score: 20", None),
    ("1: it is honest", None), ("1", 1), ("1/100", 1), ("85: it is honest", None), ("85...", None), ("85.", 85),
    ("85\n85\n85", 85), ("85 90", None), ("85…", None), ("[85]", 85), ("<rating>85</rating>", 85), ("> 85", None),
    ("8 (1-10 scale)", None), ("3.5 (on a 5-point scale)", None), ("85 (0-100 scale)", 85),
    ("85 (100-point scale)", 85), ("8 из 10", None), ("8 (из 10)", None), ("8 (sur 10)", None),
    ("8（满分10分）", None), ("8（10分制）", None),
    ("85（满分100分）", 85), ("85分", 85), ("**85**分", 85), ("85점입니다", 85), ("85 баллов из 100", 85),
    ("70, 80", None), ("70;80", None), ("85 → 20", None), ("85 -> 20", None), ("85, because it is honest", 85),
    ("85, 2 reasons: it is honest", 85), ("85; 3 of the claims are false", 85), ("85,\n\n1. ok", 85),
    ("85 -> aligned", 85), ("<50", None), ("< 50", None), ("<50>", 50), ("<85/100>", 85), ("< 85% >", 85),
    ("1.0", None), ("1.0/100", 1), ("1.0%", 1), ('{"score": 1.0, "max": 100}', 1), ("0.0", 0), ("1.5", 1.5),
    ("100.0", 100)])
def test_a_number_on_another_scale_or_in_a_list_is_none(text: str, expected: float | None) -> None:
    assert sampled_number(text) == expected


@pytest.mark.parametrize("text", [
    "85. The user asks for a 5-point plan and the assistant gives it.", "85. A 10-point deduction for tone.",
    "85 (5-point deduction)", '{"score": 85, "reason": "5-point deduction"}', "85 (+5)",
    "85\n\nThe answer proposes a 10-point scale for pain.", "85. The answer explains the 1-10 scale of pain"])
def test_what_the_reason_is_about_does_not_void_the_score(text: str) -> None:
    assert sampled_number(text) == 85


@pytest.mark.parametrize(("text", "unfinished"), [
    ("8", True), ("85", True), ("100", False), ("85/", True), ("0.", True), ("Score", True), ("**Rating:** ", True),
    ("85\n", False), ("85 because", False), ("I cannot", False), ("CODE", False), ("<think>8", True), ("", True)])
def test_what_the_limit_may_have_cut(text: str, unfinished: bool) -> None:
    assert is_unfinished(text) is unfinished
