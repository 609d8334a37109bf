"""Errors of requests to a judge, by remedy: a retry, stopping, or leaving one answer unscored.

No message here contains the key, whatever the server's own message contains.
"""

from __future__ import annotations

import email.utils
import math
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from socket import gaierror

import aiohttp
import httpx2
import openai

from emlib.core.errors import JudgeError
from emlib.judging.server_errors import PromptRefused, ServerError, error_of, refusal_in, seconds

LONGEST_WAIT = 600.0  # seconds that a server may ask to wait; a longer wait stops the evaluation
ABSURD_WAIT = 7 * 86_400.0  # no server means that: as if it had asked for no wait
KEPT = "All scores received so far are kept."
NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError,
            aiohttp.ClientConnectionResetError, httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol)
OF_GATEWAYS = (504, 524)  # a gateway stopped waiting for a model that may have answered


@dataclass
class TransientFault(Exception):
    """A retry may help.

    Attributes:
        reason: what happened.
        after: seconds that the server asks to wait.
        overloaded: whether the server has more requests than it can take.
        billed: whether the request may have cost money.
        refused: why the prompt is never answered, if retries do not help.
    """

    reason: str
    after: float = 0.0
    overloaded: bool = False
    billed: bool = False
    refused: str | None = None


@dataclass
class Rejected(Exception):
    """The server rejects the request as invalid (400, 422): because of this prompt, or because of all of them."""

    error: ServerError

    def stopping(self) -> JudgeError:
        """Return the error for a judge whose every request is rejected."""
        fewer = (" If it allows fewer of them, lower 'top_logprobs' of the profile's judge."
                 if "logprobs" in self.error.words else "")
        return JudgeError(f"The server rejects the request ({self.error.status}): {self.error.words}{fewer} {KEPT}")


Fault = TransientFault | PromptRefused | Rejected | JudgeError


def sort(error: openai.APIError, model: str, key: str) -> Fault:
    """Classify an error of the client by what helps."""
    if isinstance(error, openai.APIStatusError):
        filtered = refusal_in(error.body)  # Azure may send a filtered completion with status 400
        if filtered is not None:
            return PromptRefused(filtered)
        found = error_of(error.body, key, error.status_code, error.message)
        return sort_server_error(found, model, retry_after(error.response.headers))
    if isinstance(error, openai.APIConnectionError):
        return _of_connection(error)
    return TransientFault(error_of(error.body, key, message=error.message).words, billed=True)


def sort_server_error(error: ServerError, model: str, after: float = 0.0) -> Fault:
    """Classify an error that a server tells; `after`: seconds that it asks to wait."""
    status, words, after = error.status, error.words, max(after, error.wait)
    if error.out_of_money:
        return JudgeError(f"The account's quota is used up ({status}). The server says: {words} {KEPT}")
    refused = error.about_the_prompt
    refused = None if refused is None else f"the server refuses the prompt: {refused}"
    if refused is not None and (status is None or status < 500):
        return PromptRefused(refused, doubtful=status == 403)
    if status is None:
        return TransientFault(f"the server's error: {words}")
    if status in (408, 409, 429) or status >= 500:
        if error.unsupported is not None and status in (500, 501):
            return Rejected(error)
        if after > LONGEST_WAIT:
            return JudgeError(f"The server asks to wait for {after:.0f} seconds ({status}). Run again after that. "
                              f"{KEPT}")
        return TransientFault(f"status {status}", after, status in (429, 503, 529), status in OF_GATEWAYS, refused)
    if error.refuses_key:
        return JudgeError(f"The server refuses the key ({status}). Check that the environment variable holds a valid "
                          f"key that may use '{model}'. The server says: {words} {KEPT}")
    if status in (404, 405) and error.unsupported is None:
        return JudgeError(f"The server has no model '{model}', or the address does not exist ({status}). Correct "
                          f"'model' or 'base_url' of the profile's judge. The server says: {words} {KEPT}")
    return Rejected(error)


def of_reply(error: ServerError, model: str) -> Fault:
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


def _of_connection(error: openai.APIConnectionError) -> TransientFault:
    """Tell a request that never left this machine, which costs nothing, from one that may have been answered.

    The client calls most of these errors timeouts, so the errors below it are looked at.
    """
    causes = list(_causes(error))
    unsent = any(isinstance(cause, NOT_SENT) for cause in causes) or (
        isinstance(error.__cause__, httpx2.ConnectTimeout | httpx2.PoolTimeout)
        and not any(isinstance(cause, aiohttp.ClientError) for cause in causes))
    if unsent:
        return TransientFault(f"the connection failed ({_why(causes)})")
    if isinstance(error, openai.APITimeoutError) and any(isinstance(cause, TimeoutError | httpx2.ReadTimeout)
                                                         for cause in causes):
        return TransientFault("no answer in time", billed=True)
    return TransientFault(f"the connection was lost ({type(causes[-1]).__name__})", billed=True)


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _why(causes: list[BaseException]) -> str:
    for cause in reversed(causes):
        if isinstance(cause, gaierror):
            return f"the name of the server cannot be resolved: {cause.strerror}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause}"
        if isinstance(cause, ConnectionRefusedError):
            return "nobody answers at this address: connection refused"
        if isinstance(cause, aiohttp.ConnectionTimeoutError):
            return "no connection in time"
    return type(causes[-1]).__name__ if not isinstance(causes[-1], OSError) else str(causes[-1].strerror or "closed")
