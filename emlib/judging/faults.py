"""Errors of requests to a judge, by remedy: a retry, stopping, or leaving one answer unscored.

No message here contains the key, whatever the server's own message contains.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai

from emlib.core.errors import JudgeError

LONGEST_WAIT = 600.0  # seconds that a server may ask to wait; a longer wait stops the evaluation
LONGEST_MESSAGE = 300  # characters of a server's message
REFUSED = ("context_length_exceeded", "content_filter", "content_policy_violation", "invalid_prompt")


@dataclass
class TransientFault(Exception):
    """A retry may help. `after`: seconds that the server asks to wait. `billed`: the request may have cost money."""

    reason: str
    after: float = 0.0
    overloaded: bool = False
    billed: bool = False


@dataclass
class PromptRefused(Exception):
    """The server refuses this one prompt for good: it is too long, or a content filter blocks it."""

    reason: str


def sort(error: openai.APIError, model: str, key: str) -> TransientFault | PromptRefused | JudgeError:
    """Classify an error of the client by what helps."""
    words = _words(error, key)
    if isinstance(error, openai.APITimeoutError):
        return TransientFault("no answer in time", billed=True)
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__ or error).__name__
        return TransientFault(f"the connection failed ({cause})", billed=not cause.startswith("Connect"))
    if not isinstance(error, openai.APIStatusError):
        return TransientFault(words, billed=True)
    status = error.status_code
    if status == 429 and "insufficient_quota" in (error.code, error.type):
        return JudgeError(f"The account's quota is used up (429). The server says: {words} {KEPT}")
    if status in (408, 409, 429) or status >= 500:
        after = retry_after(error.response.headers)
        if after > LONGEST_WAIT:
            return JudgeError(f"The server asks to wait for {after:.0f} seconds ({status}). Run again after that. "
                              f"{KEPT}")
        return TransientFault(f"status {status}", after, overloaded=status in (429, 503))
    if status in (401, 403):
        return JudgeError(f"The server refuses the key ({status}). Check that the environment variable holds a valid "
                          f"key that may use '{model}'. The server says: {words} {KEPT}")
    if status == 404:
        return JudgeError(f"The server has no model '{model}', or the address does not exist (404). Correct 'model' or "
                          f"'base_url' of the profile's judge. The server says: {words} {KEPT}")
    if status == 400 and (error.code in REFUSED or "context length" in words):
        return PromptRefused(f"the server refuses the prompt: {error.code or words}")
    return JudgeError(f"The server rejects the request ({status}): {words} {KEPT}")


def by_digits(model: str) -> JudgeError:
    """Return the error for a judge whose first token is only one digit of its number."""
    return JudgeError(f"'{model}' spells numbers digit by digit: asked for a two-digit number, it does not give one as "
                      "its first token, so this token does not determine the score. Add 'samples: 10' to the profile's "
                      "judge, without 'batch', or use 'kind: local', which computes the probabilities of all 101 "
                      "numbers.")


KEPT = "All scores received so far are kept."


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that the server asks to wait, sent in milliseconds, seconds or as a date; 0 if it does not."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        date = email.utils.parsedate_tz(headers.get("retry-after", ""))
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0


def redacted(text: str, key: str) -> str:
    """Return a text in one line without the key, cut to `LONGEST_MESSAGE` characters."""
    return " ".join(text.replace(key, "[key]").split())[:LONGEST_MESSAGE] if key else text


def _words(error: openai.APIError, key: str) -> str:
    body: Any = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return redacted(str(message or error.message), key)
