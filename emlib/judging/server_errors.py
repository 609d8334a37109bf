"""What a judge's server says is wrong: read from a reply of any server, and sorted by whose fault it is.

OpenAI, Azure, vLLM, llama.cpp, LiteLLM, OpenRouter and others share the outer form `{"error": {...}}` and differ in
codes and words. The patterns below are those of their published sources and issue trackers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LONGEST_MESSAGE = 300  # characters of a server's message
REFUSED = frozenset({
    "context_length_exceeded", "string_above_max_length", "exceed_context_size_error", "tokens_limit_reached",
    "request_too_large", "model_max_prompt_tokens_exceeded", "content_filter", "content_policy_violation",
    "invalid_prompt", "responsibleaipolicyviolation", "data_inspection_failed", "moderation_blocked"})
TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window|limit)|max_model_len|reduce the (length|size) of|range of input length"
    r"|(prompt|inputs?|messages?|request|query|conversation)\b.{0,30}\b(is|are|was) (too|longer|larger)"
    r"|(prompt|input|tokens?|messages?|content|text|string) too (long|large)|`inputs` tokens|request too large"
    r"|too (long|large|big) for (the |this )?model|(entity|payload|content|body) too large|token limit exceeded"
    r"|too many (input |prompt |total )?tokens|maximum (input|prompt|sequence|model) length"
    r"|(input|prompt|token|sequence)[ _](tokens?|count|length|limit)?.{0,40}exceed"
    r"|exceed.{0,40}(token limit|number of tokens|maximum (allowed )?(tokens|length)|(input|prompt) length)",
    re.IGNORECASE)
FILTERED = re.compile(
    r"content[ _-]?(filter|management|policy|moderation)|contentpolicyviolation|responsible ?ai|requires moderation"
    r"|(prompt|input|content|message|request)s?\b.{0,40}(flagged|usage polic)|safety (system|filter|settings|policy)"
    r"|content exists risk|inappropriate content|blocked by (the |our )?(label|content|safety|guard|moderation)",
    re.IGNORECASE)
ENDED_BY_A_FILTER = frozenset({
    "content_filter", "content-filter", "content_filtered", "safety", "image_safety", "prohibited_content", "blocklist",
    "recitation", "spii", "sensitive", "refusal", "guardrail_intervened", "guardrails", "moderation"})
OUT_OF_MONEY = frozenset({"insufficient_quota", "billing_not_active", "billing_hard_limit_reached",
                          "insufficient_credits", "insufficient_balance", "credit_balance_too_low",
                          "insufficient_user_quota", "exceeded_current_quota_error", "arrearage"})
NO_MONEY = re.compile(r"credit balance is too low|insufficient (account )?(balance|credits?|funds|quota)"
                      r"|(out of|not enough) credits", re.IGNORECASE)
PARAMETERS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "temperature", "top_logprobs", "logprobs",
              "n")
N = r"['\"`]n['\"`]|(?<![\w'])n(?: parameter\b| (?:must|should|is|has)\b|\s*[:=<>])|parameter:? n\b"  # the parameter
NOT_TAKEN = re.compile(
    r"unsupported|not (be )?(support|allow|permit|enabled|available|implement|recogni)|n't support|not accept|unknown"
    r"|unrecogni[sz]ed|unexpected|extra inputs|must be|at most|only (one|the default|n ?= ?1)|invalid|deprecated"
    r"|too (low|small)|below|minimum|supported range|(higher|larger) max_", re.IGNORECASE)
TRY_AGAIN = re.compile(r"(?:try again|retry) (?:in|after) ((?:\d{1,6}(?:\.\d+)?\s?(?:ms|s|m|h|sec|min)[a-z]*\s?)+)",
                       re.IGNORECASE)
TIME = re.compile(r"\s*(?:(\d{1,9})\s*h[a-z]*)?\s*(?:(\d{1,9})\s*m(?!s)[a-z]*)?"
                  r"\s*(?:(\d{1,15}(?:\.\d+)?)\s*(m?)s?[a-z]*)?\s*", re.IGNORECASE)
RETRY_DELAY = re.compile(r'"retryDelay": "(\d{1,9}(?:\.\d+)?)s"')  # Gemini's
# Statuses by the names that servers give to errors, where the status itself says nothing (HTTP 200, lines of a batch).
STATUSES = {401: ("authentication", "invalid_api_key", "unauthorized"), 403: ("permission", "forbidden"),
            404: ("not_found", "model_not_found"), 429: ("rate_limit", "ratelimit", "too_many_requests"),
            500: ("server_error", "internal", "api_error", "overloaded", "timeout", "unavailable"),
            400: ("invalid_request", "bad_request", "badrequest", "invalid_argument", "unsupported", "validation")}


@dataclass(frozen=True)
class ServerError:
    """An error as a server tells it."""

    status: int | None  # the HTTP status, or the one that the error names; None where neither says what kind it is
    code: str  # the server's name for it, or an empty text
    names: frozenset[str]  # all that servers call by a name: code, type, inner code; in small letters
    parameter: str | None  # of the request that it is about, if it says so
    words: str  # the message in one line, without the key, cut to `LONGEST_MESSAGE` characters
    wait: float = 0.0  # seconds that the message asks to wait

    @property
    def out_of_money(self) -> bool:
        """Whether the account has no money left."""
        told = self.status in (400, 403, 429) and NO_MONEY.search(self.words) is not None
        return self.status == 402 or told or bool(self.names & OUT_OF_MONEY)

    @property
    def refuses_key(self) -> bool:
        """Whether the server does not know the key, or does not let it in; Google says so with status 400."""
        if self.status == 403:  # some filters have this status, too
            return not (self.names & REFUSED or FILTERED.search(self.words))
        return self.status == 401 or (self.status == 400 and re.search(
            r"api key (is )?(not valid|invalid|expired|not found)", self.words, re.IGNORECASE) is not None)

    @property
    def about_the_prompt(self) -> str | None:
        """Why the server will never take this prompt (it is too long, or filtered); None where it is not the prompt."""
        if self.status in (401, 403, 404):  # a filter's 403 may as well be that of an account that is blocked
            return None
        if self.status == 429:  # more tokens than the account may ever send in a minute; other limits pass
            return self.words if re.search("request too large", self.words, re.IGNORECASE) else None
        if (self.names & REFUSED or self.status == 413
                or TOO_LONG.search(self.words) or FILTERED.search(self.words)):
            return self.code if self.code.lower() in REFUSED else self.words or str(self.status)
        return None

    @property
    def unsupported(self) -> str | None:
        """The parameter of a judge's request that the model does not take in this form, if the error names one."""
        if self.status not in (400, 404, 405, 422, 500, 501):
            return None
        if self.parameter in PARAMETERS:
            return self.parameter
        if not NOT_TAKEN.search(self.words):
            return None
        if re.search(r"one (completion choice|candidate)|multiple (choices|completions|candidates)|candidate_?count",
                     self.words, re.IGNORECASE):
            return "n"
        named = [(found.start(), name) for name in PARAMETERS if (found := re.search(
            N if name == "n" else rf"\b{name}\b", self.words, re.IGNORECASE))]
        return min(named)[1] if named else None  # the first: "'max_tokens' is not supported, use ... instead"


def error_of(body: Any, key: str, status: int | None = None, message: str = "") -> ServerError:
    """Read an error from the body of a reply, whatever its form; `message` stands where the body has none."""
    body = body[0] if isinstance(body, list) and len(body) == 1 else body  # Gemini's
    found = list(_parts(body))
    names = [str(part[name]) for part in found for name in ("code", "type", "status") if part.get(name) is not None]
    code = next((name for name in names if not name.isdecimal()), "")
    parameter = next((str(part["param"]) for part in found if part.get("param")), None)
    said = dict.fromkeys(words for part in found for words in _words(part))
    text = "; ".join(said) or (body if isinstance(body, str) else "") or message or _dumped(body)
    lowered = frozenset(name.lower() for name in names)
    return ServerError(status or _status(names), code, lowered, parameter, redacted(text, key), _wait(body, text))


def error_in(reply: Any) -> Any:
    """Return the error that a reply of status 200 consists of or ends in; None without one, or for a refusal."""
    if not isinstance(reply, dict) or refusal_in(reply) is not None:
        return None
    if reply.get("error"):
        return reply["error"]
    if reply.get("choices") is None:
        return reply
    choice = first_choice(reply)
    if choice.get("error") or choice.get("finish_reason") == "error":
        return choice.get("error") or "the reply ended in an error of the server"
    return None


def refusal_in(reply: Any) -> str | None:
    """Return why the reply holds no answer: the model declines, or a filter holds its answer back; None otherwise."""
    choice = first_choice(reply)
    blocked = _blocked_prompt(reply)
    if blocked is not None and not choice:
        return f"a filter blocks the prompt ({blocked})"
    message = choice.get("message")
    declined = _declined(message) if isinstance(message, dict) else None
    if declined:
        return f"the judge refuses: {redacted(str(declined), '')!r}"
    ends = [str(choice.get(name)) for name in ("finish_reason", "native_finish_reason", "stop_reason")]
    ended = next((end for end in ends if end.lower().partition(":")[0] in ENDED_BY_A_FILTER), None)
    return None if ended is None else f"a filter holds the judge's reply back ({ended})"


def _declined(message: dict[str, Any]) -> Any:
    """Return how a message declines to answer: in its own field, or in a part of its content; None otherwise."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return message.get("refusal") or next((part.get("refusal") or part.get("text") for part in parts
                                           if isinstance(part, dict) and part.get("type") == "refusal"), None)


def _blocked_prompt(reply: Any) -> str | None:
    """Return why a reply without choices says that its prompt was blocked, as Gemini and Azure put it."""
    found = reply if isinstance(reply, dict) else {}
    feedback = found.get("promptFeedback") or found.get("prompt_feedback")
    if isinstance(feedback, dict) and (feedback.get("blockReason") or feedback.get("block_reason")):
        return str(feedback.get("blockReason") or feedback.get("block_reason"))
    return "prompt filter" if '"filtered": true' in _dumped(found.get("prompt_filter_results")) else None


def first_choice(reply: Any) -> dict[str, Any]:
    """Return the first choice of a chat completion, or an empty one."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def redacted(text: str, key: str) -> str:
    """Return a text in one line without the key, cut to `LONGEST_MESSAGE` characters."""
    return " ".join((text.replace(key, "[key]") if key else text).split())[:LONGEST_MESSAGE]


def _parts(body: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of an error from the outside in: gateways wrap the error of the server behind them."""
    for _ in range(5):
        if not isinstance(body, dict):
            return
        yield body
        several = body.get("errors")
        inner = [body.get(name) for name in ("error", "innererror", "metadata")]
        if isinstance(several, list):
            inner += several
        body = next((one for one in inner if isinstance(one, dict)), None)


def seconds(text: str) -> float | None:
    """Read a time as servers write it, in seconds or with units (20, 1m30s, 500ms); None where it is none."""
    found = TIME.fullmatch(text.split(",")[0])
    if found is None or not text.strip():
        return None
    hours, minutes, rest, milli = found.groups()
    return 3600.0 * int(hours or 0) + 60 * int(minutes or 0) + float(rest or 0) / (1000 if milli else 1)


def _wait(body: Any, text: str) -> float:
    found = RETRY_DELAY.search(_dumped(body)) or TRY_AGAIN.search(text)
    return (seconds(found[1]) or 0.0) if found else 0.0


def _dumped(body: Any) -> str:
    try:
        return json.dumps(body)
    except RecursionError:  # deeper nested than any error
        return ""


def _words(part: dict[str, Any]) -> Iterator[str]:
    for name in ("message", "error", "detail", "msg", "raw"):
        if isinstance(part.get(name), str):
            yield part[name]
        elif name == "detail" and isinstance(part.get(name), list):  # FastAPI's list of invalid fields
            yield "; ".join(f"{one.get('loc')}: {one.get('msg')}" for one in part[name] if isinstance(one, dict))


def _status(names: list[str]) -> int | None:
    """Return the status that an error names: as its code, or by a word for one."""
    for name in names:
        if name.isdecimal() and len(name) == 3 and 400 <= int(name) < 600:
            return int(name)
    return next((status for status, words in STATUSES.items()
                 if any(word in name.lower() for name in names for word in words)), None)
