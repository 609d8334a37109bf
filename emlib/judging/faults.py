"""Errors of requests to a judge, by remedy: a retry, stopping, or leaving one answer unscored.

No message here contains the key, whatever the server's own message contains.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from emlib.core.errors import JudgeError
from emlib.judging.server_errors import ServerError, seconds

LONGEST_WAIT = 600.0  # seconds that a server may ask to wait; a longer wait stops the evaluation
ABSURD_WAIT = 7 * 86_400.0  # no server means that: as if it had asked for no wait
KEPT = "All scores received so far are kept."
OF_GATEWAYS = (504, 524)  # a gateway stopped waiting for a model that may have answered


@dataclass
class Fault(Exception):
    """A request without an answer: what happened, and whether it may have cost money all the same."""

    reason: str
    billed: bool = field(default=False, kw_only=True)


@dataclass
class TransientFault(Fault):
    """A retry may help."""

    after: float = 0.0  # seconds that the server asks to wait
    overloaded: bool = False  # whether the server has more requests than it can take
    refused: str | None = None  # why the prompt is never answered, if retries do not help


@dataclass
class BadReply(TransientFault):
    """A reply without JSON, choices or log-probabilities."""

    billed: bool = field(default=True, kw_only=True)


class PromptRefused(Fault):
    """The server refuses this one prompt for good: it is too long, or a filter blocks it or the reply to it."""


class Rejected(Fault):
    """The server rejects the request (400, 403, 422): because of this prompt, or because of all of them."""

    def __init__(self, error: ServerError) -> None:
        super().__init__(error.words)
        self.error = error

    def stopping(self) -> JudgeError:
        """Return the error for a judge whose every request is rejected."""
        fewer = (" If it allows fewer of them, lower 'top_logprobs' of the profile's judge."
                 if "logprobs" in self.error.words else "")
        return JudgeError(f"The server rejects the request ({self.error.status}): {self.error.words}{fewer} {KEPT}")


Failure = Fault | JudgeError  # of one request, or of all of them


def sort_server_error(error: ServerError, model: str, after: float = 0.0) -> Failure:
    """Classify an error that a server tells; `after`: seconds that it asks to wait."""
    status, words, after = error.status, error.words, max(after, error.wait)
    if error.out_of_money:
        return JudgeError(f"The account's quota is used up ({status}). The server says: {words} {KEPT}")
    refused = error.about_the_prompt
    refused = None if refused is None else f"the server refuses the prompt: {refused}"
    if refused is not None and (status is None or status < 500):
        return PromptRefused(refused)
    if status is None:
        return TransientFault(f"the server's error: {words}")
    if status in (408, 409, 429) or status >= 500:
        if error.unsupported is not None and status in (500, 501):
            return Rejected(error)
        if after > LONGEST_WAIT:
            return JudgeError(f"The server asks to wait for {after:.0f} seconds ({status}). Run again after that. "
                              f"{KEPT}")
        return TransientFault(f"status {status}", after, status in (429, 503, 529), refused,
                              billed=status in OF_GATEWAYS)
    if error.refuses_key:
        return JudgeError(f"The server refuses the key ({status}). Check that the environment variable holds a valid "
                          f"key that may use '{model}'. The server says: {words} {KEPT}")
    if status in (404, 405) and error.unsupported is None:
        return JudgeError(f"The server has no model '{model}', or the address does not exist ({status}). Correct "
                          f"'model' or 'base_url' of the profile's judge. The server says: {words} {KEPT}")
    return Rejected(error)


def of_reply(error: ServerError, model: str) -> Failure:
    """Classify an error that a server sent with status 200; one that no retry heals is reported in its own words."""
    fault = sort_server_error(error, model)
    if isinstance(fault, TransientFault) and error.status is not None and error.words:
        fault.reason = f"the server's error ({fault.reason}): {error.words}"
    return fault


def by_digits(model: str) -> JudgeError:
    """Return the error for a judge whose first token is only one digit of its number."""
    return JudgeError(f"'{model}' spells numbers digit by digit: asked for a two-digit number, it does not give one as "
                      "its first token, so this token does not determine the score. Add 'samples: 10' to the profile's "
                      "judge, without 'batch', or use 'kind: local', which computes the probabilities of all 101 "
                      "numbers.")


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that the server asks to wait, sent in milliseconds, seconds or as a date.

    0 if it does not ask, or asks for something that cannot be meant: a negative time, or more than `ABSURD_WAIT`.
    """
    asked = headers.get("retry-after", "")
    told = [seconds(headers.get("retry-after-ms", "")), seconds(asked)]
    found = [told[0] / 1000 if told[0] is not None else 0.0, _until(asked) if told[1] is None else told[1]]
    return max(wait if math.isfinite(wait) and 0 < wait <= ABSURD_WAIT else 0.0 for wait in found)


def _until(date: str) -> float:
    try:
        parsed = email.utils.parsedate_tz(date)
        return email.utils.mktime_tz(parsed) - time.time() if parsed else 0.0
    except (ValueError, OverflowError):
        return 0.0
