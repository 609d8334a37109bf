"""What can go wrong with a request to a judge, sorted by what helps: another try, nothing, or leaving one answer out.

No message here carries the key, whatever the server wrote into its own.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai

from emlib.core.errors import JudgeError

LONGEST_WAIT = 600.0  # seconds that a server may ask to wait for; whoever asks for more is to be asked another day
LONGEST_MESSAGE = 300  # characters of a server's own words
UNFIT = ("context_length_exceeded", "content_filter", "content_policy_violation", "invalid_prompt")


@dataclass
class Passing(Exception):
    """Another try may help. `after`: seconds that the server asks to wait. `billed`: it may have cost something."""

    what: str
    after: float = 0.0
    overloaded: bool = False
    billed: bool = False


@dataclass
class Unfit(Exception):
    """The server refuses this one prompt, and always will: too long for it, or not to its liking."""

    what: str


def sort(error: openai.APIError, model: str, key: str) -> Passing | Unfit | JudgeError:
    """What an error of the client comes down to."""
    words = _words(error, key)
    if isinstance(error, openai.APITimeoutError):
        return Passing("no answer in time", billed=True)
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__ or error).__name__
        return Passing(f"the connection failed ({cause})", billed=not cause.startswith("Connect"))
    if not isinstance(error, openai.APIStatusError):
        return Passing(words, billed=True)
    status = error.status_code
    if status == 429 and "insufficient_quota" in (error.code, error.type):
        return JudgeError(f"The account's quota is used up (429). The server says: {words} {KEPT}")
    if status in (408, 409, 429) or status >= 500:
        after = retry_after(error.response.headers)
        if after > LONGEST_WAIT:
            return JudgeError(f"The server asks to wait for {after:.0f} seconds ({status}). Run again then. {KEPT}")
        return Passing(f"status {status}", after, overloaded=status in (429, 503))
    if status in (401, 403):
        return JudgeError(f"The server refuses the key ({status}). Is the environment variable set to a valid one, and "
                          f"may it use '{model}'? The server says: {words} {KEPT}")
    if status == 404:
        return JudgeError(f"There is no model '{model}' there, or no such address (404). Correct 'model' or 'base_url' "
                          f"of the profile's judge. The server says: {words} {KEPT}")
    if status == 400 and (error.code in UNFIT or "context length" in words):
        return Unfit(f"the server refuses the prompt: {error.code or words}")
    return JudgeError(f"The server does not take what it is asked ({status}): {words} {KEPT}")


def by_digits(model: str) -> JudgeError:
    """What is said of a judge whose first token is only a digit of its number."""
    return JudgeError(f"'{model}' spells numbers digit by digit, or at least has no number of two digits for its first "
                      "token when asked for one, so that this token does not tell the score. Add 'samples: 10' to the "
                      "profile's judge, without 'batch', or use 'kind: local', which reckons all 101 numbers.")


KEPT = "Every score that was given is kept."


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait, given in milliseconds, in seconds or as a date; 0 where it does not."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        date = email.utils.parsedate_tz(headers.get("retry-after", ""))
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0


def redacted(text: str, key: str) -> str:
    """A text without the key, in one line that is not too long."""
    return " ".join(text.replace(key, "[key]").split())[:LONGEST_MESSAGE] if key else text


def _words(error: openai.APIError, key: str) -> str:
    body: Any = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return redacted(str(said or error.message), key)
