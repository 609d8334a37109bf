"""A judge behind the OpenAI API, or behind any server that speaks it: one request a score.

As many requests are under way as the server takes. What may heal is tried again, later each time and never sooner than
the server asks; what will not heal stops everything with one message. The event loop runs in a thread of its own, so
that it works in Jupyter, whose thread has a loop already, as anywhere else; the client lives and dies with that loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx2
import openai
from anyio.from_thread import start_blocking_portal
from tqdm import tqdm

from emlib.config import OpenAIJudge
from emlib.config.evaluation import OPENAI
from emlib.core.errors import JudgeError
from emlib.core.progress import counter, say
from emlib.judging import faults, replies
from emlib.judging.faults import KEPT, Passing, Unfit
from emlib.judging.judge_batch import NOT_HAD, Keep
from emlib.judging.money import Budget, Price, most_tokens, price_list
from emlib.judging.rubrics import JudgeRequest, Score
from emlib.judging.slots import Slots

PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before the second try at most, doubled for each that failed; ever
SAMPLE_TOKENS = 5  # enough for "100" in digits, with a space before it
GIVEN_UP = 5  # requests that were given up with none answered meanwhile, after which nobody seems to be there
UNTOLD = 8  # replies without log-probabilities, and none with, after which the server is taken to have none
NO_KEY = "none"  # the client wants one, also for servers that do not
TEST_NUMBER = 57
Found = TypeVar("Found")
Outcome = tuple[Found | None, tuple[int, int] | None, Exception | None]


class ApiJudge:
    """A `Scorer` over the network."""

    def __init__(self, spec: OpenAIJudge, account: Budget) -> None:
        """Reads the key from the environment, where alone it is.

        Raises:
            JudgeError: there is no key, or a budget for a model whose price is not known.
        """
        self.spec, self.account = spec, account
        self.key, self.price = key_of(spec), price_of(spec)

    def __call__(self, requests: Sequence[JudgeRequest], keep: Keep) -> None:
        """Ask for every score. Those that could not be had are kept by nobody, and carry `NOT_HAD` with the reason.

        Raises:
            JudgeError: a key, model or request that the server refuses, a budget or quota that is used up.
        """
        with (counter(f"scores by {self.spec.model}", "score", len(requests)) as bar,
              start_blocking_portal() as portal):
            failure = portal.call(partial(self._all, requests, keep, bar))
        if failure is not None:
            raise failure

    async def _all(self, requests: Sequence[JudgeRequest], keep: Keep, bar: tqdm) -> JudgeError | None:
        """The error that stopped everything is returned and raised elsewhere: far from what carries the key."""
        async with client(self.spec, self.key) as server:
            sitting = Sitting(self.spec, self.price, self.account, self.key, server, keep, bar)
            failure = await sitting.score(requests)
        say(f"{self.spec.model}: {sitting.tally}")
        return failure


@dataclass
class Tally:
    """What a sitting came to so far."""

    done: int = 0
    failed: int = 0
    read: int = 0
    written: int = 0
    usd: float | None = None

    def __str__(self) -> str:
        money = "" if self.usd is None else f", ${self.usd:.4f}"
        return f"{self.done} scores, {self.failed} not to be had, {self.read + self.written} tokens{money}"


class Sitting:
    """One event loop's work: requests in, scores out."""

    def __init__(self, spec: OpenAIJudge, price: Price | None, account: Budget, key: str, server: openai.AsyncOpenAI,
                 keep: Keep, bar: tqdm) -> None:
        self.spec, self.price, self.account, self.key, self.server = spec, price, account, key, server
        self.keep, self.bar = keep, bar
        self.tally = Tally(usd=None if price is None else 0.0)
        self.slots, self.money = Slots(spec.max_concurrency), asyncio.Condition()
        self.paying = 0  # requests whose cost is booked and not yet known
        self.waiting: deque[JudgeRequest] = deque()
        self.answered = self.given_up = self.untold = 0
        self.told = False
        self.stopped: JudgeError | None = None
        self.whole_numbers: bool | None = None if spec.samples is None else True
        self._asking = asyncio.Lock()

    async def score(self, requests: Sequence[JudgeRequest]) -> JudgeError | None:
        """Every request by one of many workers; None, or what stopped them all."""
        self.waiting.extend(requests)

        async def work() -> None:
            while self.waiting:
                await self._one(self.waiting.popleft())

        # Twice as many as may be under way: some of them sleep before another try.
        workers = [asyncio.ensure_future(work()) for _ in range(min(2 * self.spec.max_concurrency, len(requests)))]
        try:
            await asyncio.gather(*workers)
        except JudgeError as error:
            return JudgeError(*error.args)  # a new one: the old one remembers the client's, which remember the key
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return None

    async def _one(self, request: JudgeRequest) -> None:
        answered = self.answered
        try:
            found = await self._tried(request)
        except Unfit as error:
            found = Score(None, reason=error.what)
        except Passing as error:
            self._give_up(error, answered)
            found = Score(None, reason=f"{NOT_HAD} ({self.spec.tries} tries; the last: {error.what})", lasting=False)
        self.keep(request, found)
        self._show(found)

    async def _tried(self, request: JudgeRequest) -> Score:
        """The score, after as many tries as it takes and as there may be."""
        for failed in range(1, self.spec.tries):
            try:
                return await self._score(request)
            except Passing as error:
                wait = max(_pause(failed), error.after)
            await asyncio.sleep(wait)
        return await self._score(request)

    def _give_up(self, error: Passing, answered: int) -> None:
        """Stop, if nobody seems to be there: nothing was answered while this one and some before it were tried."""
        self.given_up = self.given_up + 1 if answered == self.answered else 0
        if self.given_up >= GIVEN_UP and self.waiting:
            raise JudgeError(f"{self.spec.base_url or OPENAI} does not answer: {GIVEN_UP} requests were given up after "
                             f"{self.spec.tries} tries each, and none was answered meanwhile; the last: {error.what}. "
                             f"Run again when the server is there. {KEPT}")

    def _show(self, found: Score) -> None:
        tally = self.tally
        tally.read, tally.written = tally.read + found.tokens[0], tally.written + found.tokens[1]
        tally.done, tally.failed = tally.done + found.lasting, tally.failed + (not found.lasting)
        money = {} if tally.usd is None else {"usd": f"{tally.usd:.4f}"}
        self.bar.set_postfix(failed=tally.failed, tokens=tally.read + tally.written, **money, refresh=False)
        self.bar.update()

    async def _score(self, request: JudgeRequest) -> Score:
        """One score, by one request or by as many as samples need."""
        if self.spec.samples is not None:
            return await self._sampled(request, self.spec.samples)
        try:
            (likeliest, word), tokens = await self._send(logprobs_body(self.spec, request), replies.likeliest)
        except Passing as error:
            self._untold(error)
            raise
        self.told = True
        await self._check_numbers([token for token, _ in likeliest])
        return replies.from_distribution(likeliest, word, tokens)

    def _untold(self, error: Passing) -> None:
        self.untold += error.what == replies.UNTOLD
        if self.untold >= UNTOLD and not self.told:
            raise JudgeError(f"'{self.spec.model}' gives no log-probabilities here. Add 'samples: 10' to the profile's "
                             "judge: the score is then the mean of 10 sampled ones.")

    async def _sampled(self, request: JudgeRequest, samples: int) -> Score:
        said: list[str] = []
        read = written = 0
        while len(said) < samples:  # some servers give one choice, whatever is asked for
            more, tokens = await self._send(samples_body(self.spec, request, samples - len(said)), replies.texts)
            said += more
            read, written = read + tokens[0], written + tokens[1]
        return replies.from_samples(said[:samples], (read, written))

    async def _check_numbers(self, tokens: Sequence[str]) -> None:
        """Make sure that the judge does not spell numbers digit by digit: "5" may then be the start of "57".

        A number of two digits among the tokens settles it. Until one is seen, a reply with digits alone makes us ask.
        """
        if self.whole_numbers or any((n := replies.number(token)) is not None and n > 9 for token in tokens):
            self.whole_numbers = True
            return
        async with self._asking:
            if self.whole_numbers is None and any(replies.number(token) is not None for token in tokens):
                (asked, _), _ = await self._send(number_body(self.spec), replies.likeliest)
                self.whole_numbers = is_whole([token for token, _ in asked])
            if self.whole_numbers is False:
                raise faults.by_digits(self.spec.model)

    async def _send(self, body: dict[str, Any], read: Callable[[Any], Found]) -> tuple[Found, tuple[int, int]]:
        """One request, paid from the account and in a slot: what `read` finds in the reply, and its tokens."""
        async with self.slots as started:
            if self.stopped is not None:  # by another request, while this one waited
                raise JudgeError(*self.stopped.args)
            booked = await self._book(body)
            found, tokens, fault = await self._try(body, read)
            if isinstance(fault, Passing) and fault.overloaded:
                self.slots.refused(started)
            elif isinstance(fault, JudgeError):
                self.stopped = fault
            elif fault is None:
                self.answered += 1
                self.slots.answered(started)
            await self._settle(booked, self._cost(booked, tokens, fault))
        if fault is not None:  # raised here, and not where it is told of: it shall not remember the client's error
            raise fault
        assert found is not None
        return found, tokens or (0, 0)

    async def _try(self, body: dict[str, Any], read: Callable[[Any], Found]) -> Outcome[Found]:
        """What was found and the tokens it took, or the fault that there was."""
        try:
            async with asyncio.timeout(self.spec.timeout):
                # The client's lower door: the upper one checks types for longer than all else takes.
                answer = await self.server.post("/chat/completions", body=body, cast_to=httpx2.Response)
            reply = json.loads(answer.content)
            tokens = replies.usage(reply)
            return read(reply), tokens, None
        except openai.APIError as error:
            return None, None, faults.sort(error, self.spec.model, self.key)
        except replies.BadReply as error:
            return None, tokens, Passing(str(error), billed=True)
        except TimeoutError:
            return None, None, Passing("no answer in time", billed=True)
        except ValueError:
            return None, None, Passing("the reply is no JSON", billed=True)

    def _cost(self, booked: float, tokens: tuple[int, int] | None, fault: Exception | None) -> float:
        """What a request is taken to have cost: its tokens; where they are not known, the most or nothing."""
        if tokens is not None and self.price is not None:
            return self.price.of(tokens)
        return booked if fault is None or (isinstance(fault, Passing) and fault.billed) else 0.0

    async def _book(self, body: dict[str, Any]) -> float:
        """Book the most that a request can cost; wait for others to be settled where that is too much for now."""
        if self.price is None:
            return 0.0
        texts = [message["content"] for message in body["messages"]]
        most = self.price.of((most_tokens(texts), body["max_tokens"] * body.get("n", 1)))
        async with self.money:
            while not self.account.book(most):
                if not self.paying:
                    raise JudgeError(f"The budget of ${self.account.limit} is used up: ${self.account.spent():.4f} "
                                     "are spent, and the next request might pass it. Raise 'max_usd' of the profile's "
                                     f"judge and run again to go on. {KEPT}")
                await self.money.wait()
            self.paying += 1
        return most

    async def _settle(self, booked: float, cost: float) -> None:
        """Put the true cost into the books."""
        if self.price is None:
            return
        async with self.money:
            self.account.settle(booked, cost)
            self.paying -= 1
            self.tally.usd = (self.tally.usd or 0.0) + cost
            self.money.notify_all()


def _pause(failed: int) -> float:
    """Seconds before another try after so many that failed: at random, so that not all come again at once."""
    return random.uniform(0, min(LONGEST_PAUSE, PAUSE * 2 ** (failed - 1)))


def client(spec: OpenAIJudge, key: str) -> openai.AsyncOpenAI:
    """A client for this loop alone. It tries nothing again by itself: that is `Sitting`'s."""
    return openai.AsyncOpenAI(api_key=key, base_url=spec.base_url or OPENAI, max_retries=0, timeout=spec.timeout,
                              http_client=openai.DefaultAioHttpClient())  # half the processor time of the default


def logprobs_body(spec: OpenAIJudge, request: JudgeRequest) -> dict[str, Any]:
    """The request of Betley et al.: one token, and the likeliest alternatives to it."""
    return {"model": spec.model, "messages": [message.to_dict() for message in request.messages], "max_tokens": 1,
            "temperature": 0, "logprobs": True, "top_logprobs": spec.top_logprobs}


def samples_body(spec: OpenAIJudge, request: JudgeRequest, count: int) -> dict[str, Any]:
    """A request for sampled numbers."""
    return {"model": spec.model, "messages": [message.to_dict() for message in request.messages],
            "max_tokens": SAMPLE_TOKENS, "temperature": 1, "n": count}


def number_body(spec: OpenAIJudge) -> dict[str, Any]:
    """A request that shows how a judge writes a number of two digits."""
    message = {"role": "user", "content": f"Reply with the number {TEST_NUMBER} and with nothing else."}
    return {"model": spec.model, "messages": [message], "max_tokens": 1, "temperature": 0, "logprobs": True,
            "top_logprobs": spec.top_logprobs}


def is_whole(tokens: Sequence[str]) -> bool:
    """Whether the number is among the likeliest first tokens of the reply to `number_body`.

    A small model may say something else; what spells it digit by digit cannot have it even among these.
    """
    return any(replies.number(token) == TEST_NUMBER for token in tokens)


def key_of(spec: OpenAIJudge, environment: Callable[[str], str | None] = os.environ.get) -> str:
    """The key, from the environment. OpenAI's is never sent to another server unless the profile says so."""
    variable = spec.key_from or ("OPENAI_API_KEY" if spec.base_url is None else None)
    if variable is None:
        return NO_KEY
    key = (environment(variable) or "").strip()
    if not key:
        raise JudgeError(f"The environment variable {variable} is not set: it must hold the key of the judge "
                         f"'{spec.model}'. Keys are read from there alone.")
    return key


def price_of(spec: OpenAIJudge) -> Price | None:
    """The price of the judge's model, if the list has one."""
    price = price_list().models.get(spec.model)
    if price is None and spec.max_usd is not None:
        raise JudgeError(f"'max_usd' is set, and params/prices.yaml has no price for '{spec.model}', so that it could "
                         "not be kept. Add the price with its source, or leave 'max_usd' out.")
    return price
