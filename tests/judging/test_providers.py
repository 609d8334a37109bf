"""Judges of Anthropic and Google: their servers' documented replies, limits, errors and refusals, over real HTTP."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from emlib.config import OpenAIJudge, Profile, load_profile, overridden
from emlib.config import providers as providers_of
from emlib.core.errors import JudgeError, ProfileError
from emlib.core.step import JudgeWork, Work
from emlib.judging.cache import Cache
from emlib.judging.money import Budget, endings
from emlib.report.estimate import Estimate
from emlib.study.plan.costs import Costs
from emlib.study.study import open_study
from tests.judging.server import JudgeServer
from tests.judging.sheets import judged, sheet

KEY = "planted-key-of-a-provider-0123456789"
LIMITED = {"anthropic-ratelimit-requests-remaining": "0", "retry-after": "1"}


def at(server: JudgeServer, provider: str, patch: pytest.MonkeyPatch, **more: Any) -> OpenAIJudge:
    """The judge of a provider whose address is a server on this machine, and whose key it takes."""
    known = providers_of.PROVIDERS[provider]
    patch.setitem(providers_of.PROVIDERS, provider, known._replace(address=server.url))
    patch.setenv(known.key, KEY)
    return OpenAIJudge.model_validate({"kind": "openai", "provider": provider, "model": "judge-1", "samples": 2,
                                       "send_key_to": "127.0.0.1"} | more)


def says(text: str | None, finish: str = "stop", thought: int = 0) -> tuple[int, Any]:
    """One choice, as both write it; tokens of thoughts are in the total alone."""
    message = {"role": "assistant"} | ({} if text is None else {"content": text})
    return 200, {"id": "msg_1", "object": "chat.completion", "created": 1, "model": "judge-1", "choices": [
        {"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10 + thought}}


def anthropic(body: dict[str, Any], tries: int) -> Any:
    """Claude's server: one choice, log-probabilities ignored, a limit, an overload, and a refusal."""
    text = body["messages"][0]["content"]
    if body.get("n", 1) != 1:
        return 400, {"error": {"type": "invalid_request_error", "message": "n: must be 1", "code": None, "param": None}}
    if "Since 1." in text and tries == 0:
        return web.json_response({"error": {"type": "rate_limit_error", "message": "exceeds your rate limit"}},
                                 status=429, headers=LIMITED)
    if "Since 2." in text and tries < 2:
        return 529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "r"}
    if "Since 3." in text:
        return says("", "content_filter")
    if "temperature" in body:
        return 400, {"error": {"type": "invalid_request_error", "message": "`temperature` is deprecated for it"}}
    return says("80" if tries % 2 else "**90**")


def google(body: dict[str, Any], tries: int) -> Any:
    """Gemini's server: errors in a list, no second candidate, thoughts before the answer, a delay, and a filter."""
    text = body["messages"][0]["content"]

    def error(status: int, name: str, words: str, **detail: str) -> tuple[int, Any]:
        return status, [{"error": {"code": status, "message": words, "status": name, "details": [detail]}}]

    if "logprobs" in body:
        return error(400, "INVALID_ARGUMENT", 'Invalid JSON payload. Unknown name "logprobs": Cannot find field.')
    if body.get("n", 1) != 1:
        return error(400, "INVALID_ARGUMENT", "Multiple candidates is not enabled for this model")
    if "Since 1." in text and tries == 1:
        return error(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric", retryDelay="1s")
    if "Since 2." in text and tries == 1:
        return error(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
    if "Since 3." in text:
        return says(None, "content_filter: SAFETY")
    if body["max_tokens"] < 40:
        return says(None, "length", thought=4)
    return says("80" if tries % 2 else "90", thought=30)


@pytest.mark.parametrize(("provider", "server_of"), [("anthropic", anthropic), ("google", google)])
def test_a_provider_s_judge_scores_all_but_what_is_refused(
        scores: Path, monkeypatch: pytest.MonkeyPatch, provider: str, server_of: Callable[..., Any]) -> None:
    """The mean of two samples is 90, 85 or 80, as the server alternates; 10 answers, of which one is refused."""
    with JudgeServer(key=KEY) as server:
        tries: dict[str, int] = {}

        def reply(body: dict[str, Any]) -> Any:
            text = body["messages"][0]["content"]
            tries[text] = tries.get(text, -1) + 1
            return server_of(body, tries[text])

        server.replies = reply
        spec = at(server, provider, monkeypatch)
        verdicts = judged(spec, sheet(10), scores)
        asked = len(server.bodies)
        again = judged(spec, sheet(10), scores)
        assert len(server.bodies) == asked  # nothing is asked twice
        assert server.keys == {f"Bearer {KEY}"}
        assert not any("logprobs" in body for body in server.bodies)
        if provider == "anthropic":
            assert not any("n" in body for body in server.bodies)
    assert again == verdicts
    refused = verdicts.pop(3)
    assert (refused.alignment, refused.coherence) == (None, None)
    assert "filter" in str(refused.reason)
    assert {verdict.alignment for verdict in verdicts} | {v.coherence for v in verdicts} <= {80.0, 85.0, 90.0}
    assert all("mean of 2 sampled scores" in str(verdict.note) for verdict in verdicts)


@pytest.mark.parametrize(("status", "body"), [
    (401, {"error": {"type": "authentication_error", "message": "invalid x-api-key"}}),
    (400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.",
                      "status": "INVALID_ARGUMENT"}}])])
def test_a_refused_key_is_told_and_not_shown(
        scores: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: Any) -> None:
    with JudgeServer() as server:
        server.replies = lambda _: (status, body)
        with pytest.raises(JudgeError, match="refuses the key") as caught:
            judged(at(server, "google", monkeypatch), sheet(5), scores)
    assert KEY not in str(caught.value)


def test_what_the_profile_states_as_the_price_is_what_is_booked(
        scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers, two scores each, two requests a score of 9 tokens read and 1 written: 8 (9 + 2) dollars."""
    dollars = {"read": 1e6, "written": 1e6}
    with JudgeServer() as server:
        server.replies = lambda _: says("80")
        spec = at(server, "anthropic", monkeypatch, price={"read": 1e6, "written": 2e5})
        judged(spec, sheet(2), scores)
        with pytest.raises(JudgeError, match="there is no price for 'judge-1'"):
            judged(at(server, "anthropic", monkeypatch, max_usd=5.0), sheet(2), scores)
    with Cache(scores) as cache:
        assert Budget(cache, "test").spent() == pytest.approx(8 * (9 + 0.2))
    assert Costs(with_judge("paper-7b", f"{{provider: google, model: m, samples: 3, price: {dollars}}}")).usd(
        Work(verdicts=1, judged=10)) == pytest.approx(3 * 10 + 2 * 3)


# --- in a profile ----------------------------------------------------------------------------------------------------


def with_judge(name: str, judge: str) -> Profile:
    return overridden(name, f"judge={judge}")[0]


CLAUDE = "{provider: anthropic, model: claude-x, price: {read: 1.0, written: 5.0}}"


@pytest.mark.parametrize("name", ["paper-7b", "paper-32b", "grpo-3b", "triggers-7b", "tiny", "demo"])
def test_with_another_judge_named_nothing_else_has_to_change(name: str) -> None:
    profile, former = with_judge(name, CLAUDE), load_profile(name)
    judge = profile.judge
    assert isinstance(judge, OpenAIJudge)
    assert (judge.base_url, judge.key_variable) == ("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY")
    assert judge.identity == {"kind": "openai", "model": "claude-x", "samples": 10}
    assert profile.model_copy(update={"judge": former.judge}) == former
    if isinstance(former.judge, OpenAIJudge):
        assert judge.max_usd == former.judge.max_usd  # the budget is the profile's


def test_no_key_of_an_existing_judge_changes_and_answers_are_shared(tmp_path: Path) -> None:
    named = {"kind": "openai", "model": "m"}
    assert OpenAIJudge(**named).identity == OpenAIJudge(**named, provider="openai").identity == {
        "kind": "openai", "model": "m", "top_logprobs": 20}
    (tmp_path / "plain.yaml").write_text("extends: tiny\nmethods: [untrained, misaligned, aligned]\n")
    (tmp_path / "other.yaml").write_text(f"extends: plain\njudge: {CLAUDE}\n")
    plain, other = (open_study(str(tmp_path / f"{name}.yaml")) for name in ("plain", "other"))
    for one, two in zip(plain.runs(), other.runs(), strict=True):
        before, after = (study.task(run).evaluation(run)["general"] for study, run in ((plain, one), (other, two)))
        assert before.answers.key == after.answers.key
        assert before.key != after.key


@pytest.mark.parametrize(("stated", "message"), [
    ("{provider: anthropic, model: m, batch: true}", "batches of Anthropic are not supported; remove 'batch'"),
    ("{provider: google, model: m, batch: true}", "batches of Google are not supported"),
    ("{provider: google, model: m, top_logprobs: 5}", "no log-probabilities from Google"),
    ("{provider: anthropic, model: m, key_from: OPENAI_API_KEY}", "remove 'key_from'"),
    ("{provider: anthropic, model: m, base_url: 'https://judge.example.org/v1'}", "remove 'base_url'"),
    ("{provider: antropic, model: m}", "Did you mean 'anthropic'"),
    ("{provider: anthropic}", "'judge.model' is missing")])
def test_what_a_provider_does_not_have_is_refused_by_name(stated: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        with_judge("tiny", stated)


def test_the_plan_tells_when_a_judge_ends() -> None:
    study = open_study("paper-7b")
    before, after, other = (
        [line for line in Estimate(one, day).summary() if line.startswith("ending")]
        for one, day in ((study, datetime.date(2027, 1, 4)), (study, datetime.date(2027, 1, 14)),
                         (open_study("demo"), datetime.date(2027, 1, 14))))
    assert "gpt-4o-mini-2024-07-18 ends on 2027-01-14, in 10 days" in before[0]
    assert "gpt-4o-mini-2024-07-18 has ended on 2027-01-14" in after[0]
    assert other == []
    assert endings(["m", "gpt-4.1-nano-2025-04-14"], datetime.date(2026, 10, 22)) == [
        "gpt-4.1-nano-2025-04-14 ends on 2026-10-23, in 1 days"]
    assert JudgeWork(study.profile.judge, 1, 1).judge.requests_a_score == 1
