"""How a judge's server is reached: its address, the key, the client, and what the model costs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import openai

from emlib.config import OpenAIJudge
from emlib.config.keys import why_not_sent
from emlib.config.providers import Price
from emlib.core.errors import JudgeError
from emlib.core.proxies import ask_directly
from emlib.judging.money import price_list

NO_KEY = "none"  # the client requires a key, even where the server does not
LONGEST_CONNECT = 10.0  # seconds to connect
SENDABLE = re.compile(r"[!-~]+")  # what a header can carry, without spaces


def key_of(spec: OpenAIJudge, environment: Callable[[str], str | None] = os.environ.get) -> str:
    """Return the key from the environment, if it may be sent to the judge's server.

    Raises:
        JudgeError: the key is missing, has characters that no key has, or is meant for another server. The message
            never holds the key.
    """
    variable = spec.key_variable
    if variable is None:
        return NO_KEY
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
    return openai.AsyncOpenAI(api_key=key, base_url=spec.address, max_retries=0, timeout=limits,
                              http_client=openai.DefaultAioHttpClient())  # half the processor time of the default


def price_of(spec: OpenAIJudge) -> Price | None:
    """Return the price of the judge's model, if the profile or the list states one."""
    price = spec.price or price_list().models.get(spec.model)
    if price is None and spec.max_usd is not None:
        raise JudgeError(f"'max_usd' is set, and there is no price for '{spec.model}', so the limit cannot be "
                         "enforced. Give the judge its 'price', such as {read: 1.0, written: 5.0} in US dollars per "
                         "million tokens, add it to params/prices.yaml, or leave 'max_usd' out.")
    return price
