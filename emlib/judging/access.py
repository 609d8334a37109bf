"""How a judge's server is reached: its address, the key, the client and its errors, and what the model costs."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Iterator
from socket import gaierror

import aiohttp
import httpx2
import openai

from emlib.config import OpenAIJudge
from emlib.config.providers import Price, why_not_sent
from emlib.core.addresses import ask_directly
from emlib.core.errors import JudgeError
from emlib.judging.faults import Failure, PromptRefused, TransientFault, retry_after, sort_server_error
from emlib.judging.money import price_list
from emlib.judging.server_errors import error_of, refusal_in

NO_KEY = "none"  # the client requires a key, even where the server does not
LONGEST_CONNECT = 10.0  # seconds to connect
NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError,
            aiohttp.ClientConnectionResetError, httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol)
SENDABLE = re.compile(r"[!-~]+")  # what a header can carry, without spaces


def api_key(spec: OpenAIJudge, environment: Callable[[str], str | None] = os.environ.get) -> str:
    """Return the key from the environment, if it may be sent to the judge's server; empty for a judge without one.

    Raises:
        JudgeError: the key is missing, has characters that no key has, or is meant for another server. The message
            never holds the key.
    """
    variable = spec.key_variable
    if variable is None:
        return ""
    wrong = why_not_sent(variable, spec.address, spec.send_key_to)
    if wrong is not None:
        raise JudgeError(f"The judge '{spec.model}': {wrong}. Nothing was sent.")
    key = (environment(variable) or "").strip()
    if not key:
        raise JudgeError(f"The environment variable {variable} is not set: it must hold the API key of the judge "
                         f"'{spec.model}'. Keys are read from the environment only.")
    if not SENDABLE.fullmatch(key):
        place = next(place for place, letter in enumerate(key, start=1) if not SENDABLE.fullmatch(letter))
        raise JudgeError(f"The environment variable {variable} holds no key that can be sent: its character {place} of "
                         f"{len(key)} is a space, a line break or not ASCII (a typographic dash, say). Copy the key of "
                         f"the judge '{spec.model}' again. Nothing was sent.")
    return key


def client(spec: OpenAIJudge, key: str) -> openai.AsyncOpenAI:
    """Return a client for this event loop. It does not retry: `Sender` and `JudgingSession` do."""
    ask_directly(spec.address)
    limits = openai.Timeout(spec.timeout, connect=min(LONGEST_CONNECT, 0.9 * spec.timeout))
    return openai.AsyncOpenAI(api_key=key or NO_KEY, base_url=spec.address, max_retries=0, timeout=limits,
                              http_client=openai.DefaultAioHttpClient())  # half the processor time of the default


def price_of(spec: OpenAIJudge) -> Price | None:
    """Return the price of the judge's model, if the profile or the list states one.

    Raises:
        JudgeError: neither does, and the judge has a budget.
    """
    price = spec.price or price_list().models.get(spec.model)
    if price is None and spec.max_usd is not None:
        raise JudgeError(f"'max_usd' is set, and there is no price for '{spec.model}', so the limit cannot be "
                         "enforced. Give the judge its 'price', such as {read: 1.0, written: 5.0} in US dollars per "
                         "million tokens, add it to params/prices.yaml, or leave 'max_usd' out.")
    return price


def fault_of(error: openai.APIError, model: str, key: str) -> Failure:
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
