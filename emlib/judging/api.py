"""A judge behind the OpenAI API or any compatible server: one request per score.

As many requests run concurrently as the server accepts. Transient errors are retried with growing pauses, never sooner
than the server asks; a permanent error stops all requests with one message. The event loop runs in a separate thread,
because Jupyter's thread already has a loop; the client exists as long as that loop.
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
from emlib.core.proxies import ask_directly
from emlib.judging import faults, replies
from emlib.judging.faults import KEPT, PromptRefused, TransientFault
from emlib.judging.judge_batch import NOT_HAD, Keep
from emlib.judging.money import Budget, Price, most_tokens, price_list
from emlib.judging.rubrics import JudgeRequest, Score
from emlib.judging.slots import Slots

PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds: the longest pause before the second try, doubled per failure; the cap
SAMPLE_TOKENS = 5  # enough for "100" in digits, with a space before it
GIVEN_UP = 5  # requests given up in a row, with none answered meanwhile, before the server counts as down
MOST_WITHOUT_LOGPROBS = 8  # replies without log-probabilities, and none with, before the server counts as having none
NO_KEY = "none"  # the client requires a key, even where the server does not
TEST_NUMBER = 57
Found = TypeVar("Found")
Outcome = tuple[Found | None, tuple[int, int] | None, Exception | None]


class ApiJudge:
    """A `Scorer` over the network."""

    def __init__(self, spec: OpenAIJudge, budget: Budget) -> None:
        """Read the key from the environment; keys are stored nowhere else.

        Raises:
            JudgeError: the key is missing, or the budget has a limit and the model's price is unknown.
        """
        self.spec, self.budget = spec, budget
        self.key, self.price = key_of(spec), price_of(spec)

    def __call__(self, requests: Sequence[JudgeRequest], keep: Keep) -> None:
        """Request every score. Failed ones carry `NOT_HAD` with the reason and are not cached.

        Raises:
            JudgeError: the server refuses the key, the model or a request; or the budget or quota is used up.
        """
        with (counter(f"scores by {self.spec.model}", "score", len(requests)) as bar,
              start_blocking_portal() as portal):
            failure = portal.call(partial(self._all, requests, keep, bar))
        if failure is not None:
            raise failure

    async def _all(self, requests: Sequence[JudgeRequest], keep: Keep, bar: tqdm) -> JudgeError | None:
        """Return the error that stopped all requests; the caller raises it, so that its traceback holds no key."""
        async with client(self.spec, self.key) as server:
            session = JudgingSession(self.spec, self.price, self.budget, self.key, server, keep, bar)
            failure = await session.score(requests)
        say(f"{self.spec.model}: {session.tally}")
        return failure


@dataclass
class Tally:
    """Counts and cost of a session so far."""

    done: int = 0
    failed: int = 0
    read: int = 0
    written: int = 0
    usd: float | None = None

    def __str__(self) -> str:
        money = "" if self.usd is None else f", ${self.usd:.4f}"
        return f"{self.done} scores, {self.failed} failed, {self.read + self.written} tokens{money}"


class JudgingSession:
    """The work of one event loop: requests in, scores out."""

    def __init__(self, spec: OpenAIJudge, price: Price | None, budget: Budget, key: str, server: openai.AsyncOpenAI,
                 keep: Keep, bar: tqdm) -> None:
        self.spec, self.price, self.budget, self.key, self.server = spec, price, budget, key, server
        self.keep, self.bar = keep, bar
        self.tally = Tally(usd=None if price is None else 0.0)
        self.slots, self.money = Slots(spec.max_concurrency), asyncio.Condition()
        self.unsettled = 0  # requests whose cost is booked and not yet known
        self.waiting: deque[JudgeRequest] = deque()
        self.answered = self.given_up = self.without_logprobs = 0
        self.has_logprobs = False
        self.stopped: JudgeError | None = None
        self.whole_numbers: bool | None = None if spec.samples is None else True
        self._asking = asyncio.Lock()

    async def score(self, requests: Sequence[JudgeRequest]) -> JudgeError | None:
        """Send every request by one of many workers; return the error that stopped them, or None."""
        self.waiting.extend(requests)

        async def work() -> None:
            while self.waiting:
                await self._one(self.waiting.popleft())

        # Twice as many workers as concurrent requests: some sleep before a retry.
        workers = [asyncio.ensure_future(work()) for _ in range(min(2 * self.spec.max_concurrency, len(requests)))]
        try:
            await asyncio.gather(*workers)
        except JudgeError as error:
            return JudgeError(*error.args)  # a new one: the old one refers to the client's errors, which hold the key
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return None

    async def _one(self, request: JudgeRequest) -> None:
        answered = self.answered
        try:
            found = await self._tried(request)
        except PromptRefused as error:
            found = Score(None, reason=error.reason)
        except TransientFault as error:
            self._give_up(error, answered)
            found = Score(None, reason=f"{NOT_HAD} ({self.spec.tries} tries; the last: {error.reason})", lasting=False)
        self.keep(request, found)
        self._show(found)

    async def _tried(self, request: JudgeRequest) -> Score:
        """Return the score, with retries up to the number of tries that the profile allows."""
        for failed in range(1, self.spec.tries):
            try:
                return await self._score(request)
            except TransientFault as error:
                wait = max(_pause(failed), error.after)
            await asyncio.sleep(wait)
        return await self._score(request)

    def _give_up(self, error: TransientFault, answered: int) -> None:
        """Stop if the server seems to be down: it answered nothing while `GIVEN_UP` requests were tried."""
        self.given_up = self.given_up + 1 if answered == self.answered else 0
        if self.given_up >= GIVEN_UP and self.waiting:
            raise JudgeError(f"{self.spec.base_url or OPENAI} does not answer: {GIVEN_UP} requests were given up after "
                             f"{self.spec.tries} tries each, and none was answered meanwhile; the last: "
                             f"{error.reason}. Run again when the server is up. {KEPT}")

    def _show(self, found: Score) -> None:
        tally = self.tally
        tally.read, tally.written = tally.read + found.tokens[0], tally.written + found.tokens[1]
        tally.done, tally.failed = tally.done + found.lasting, tally.failed + (not found.lasting)
        money = {} if tally.usd is None else {"usd": f"{tally.usd:.4f}"}
        self.bar.set_postfix(failed=tally.failed, tokens=tally.read + tally.written, **money, refresh=False)
        self.bar.update()

    async def _score(self, request: JudgeRequest) -> Score:
        """Request one score: one request, or several where the score is a mean of samples."""
        if self.spec.samples is not None:
            return await self._sampled(request, self.spec.samples)
        try:
            (likeliest, word), tokens = await self._send(logprobs_body(self.spec, request), replies.likeliest)
        except TransientFault as error:
            self._count_without_logprobs(error)
            raise
        self.has_logprobs = True
        await self._check_numbers([token for token, _ in likeliest])
        return replies.from_distribution(likeliest, word, tokens)

    def _count_without_logprobs(self, error: TransientFault) -> None:
        self.without_logprobs += error.reason == replies.NO_LOGPROBS
        if self.without_logprobs >= MOST_WITHOUT_LOGPROBS and not self.has_logprobs:
            raise JudgeError(f"'{self.spec.model}' gives no log-probabilities here. Add 'samples: 10' to the profile's "
                             "judge: the score is then the mean of 10 sampled ones.")

    async def _sampled(self, request: JudgeRequest, samples: int) -> Score:
        texts: list[str] = []
        read = written = 0
        while len(texts) < samples:  # some servers return one choice, however many are requested
            more, tokens = await self._send(samples_body(self.spec, request, samples - len(texts)), replies.texts)
            texts += more
            read, written = read + tokens[0], written + tokens[1]
        return replies.from_samples(texts[:samples], (read, written))

    async def _check_numbers(self, tokens: Sequence[str]) -> None:
        """Check that the judge does not spell numbers digit by digit, where "5" may be the start of "57".

        A two-digit number among the tokens proves it. Until one is seen, a reply with single digits triggers a test
        request.
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
        """Send one request, within the budget and in a slot; return what `read` finds in the reply, and its tokens."""
        async with self.slots as started:
            if self.stopped is not None:  # by another request, while this one waited
                raise JudgeError(*self.stopped.args)
            booked = await self._book(body)
            found, tokens, fault = await self._try(body, read)
            if isinstance(fault, TransientFault) and fault.overloaded:
                self.slots.refused(started)
            elif isinstance(fault, JudgeError):
                self.stopped = fault
            elif fault is None:
                self.answered += 1
                self.slots.answered(started)
            await self._settle(booked, self._cost(booked, tokens, fault))
        if fault is not None:  # raised here, outside the `except`, so that it does not refer to the client's error
            raise fault
        assert found is not None
        return found, tokens or (0, 0)

    async def _try(self, body: dict[str, Any], read: Callable[[Any], Found]) -> Outcome[Found]:
        """Return what `read` found and the tokens used, or the fault."""
        try:
            async with asyncio.timeout(self.spec.timeout):
                # The client's low-level call: its high-level one spends more time on type checks than all else takes.
                answer = await self.server.post("/chat/completions", body=body, cast_to=httpx2.Response)
            reply = json.loads(answer.content)
            tokens = replies.usage(reply)
            return read(reply), tokens, None
        except openai.APIError as error:
            return None, None, faults.sort(error, self.spec.model, self.key)
        except replies.BadReply as error:
            return None, tokens, TransientFault(str(error), billed=True)
        except TimeoutError:
            return None, None, TransientFault("no answer in time", billed=True)
        except ValueError:
            return None, None, TransientFault("the reply is no JSON", billed=True)

    def _cost(self, booked: float, tokens: tuple[int, int] | None, fault: Exception | None) -> float:
        """Return a request's cost by its tokens; where they are unknown, the booked maximum if it may be billed."""
        if tokens is not None and self.price is not None:
            return self.price.of(tokens)
        return booked if fault is None or (isinstance(fault, TransientFault) and fault.billed) else 0.0

    async def _book(self, body: dict[str, Any]) -> float:
        """Book the most that a request can cost; where the budget is short, wait until other requests are settled."""
        if self.price is None:
            return 0.0
        texts = [message["content"] for message in body["messages"]]
        most = self.price.of((most_tokens(texts), body["max_tokens"] * body.get("n", 1)))
        async with self.money:
            while not self.budget.book(most):
                if not self.unsettled:
                    raise JudgeError(f"The budget of ${self.budget.limit} is used up: ${self.budget.spent():.4f} "
                                     "are spent, and the next request might exceed it. Raise 'max_usd' of the "
                                     f"profile's judge and run again to continue. {KEPT}")
                await self.money.wait()
            self.unsettled += 1
        return most

    async def _settle(self, booked: float, cost: float) -> None:
        """Replace the booked amount by the true cost."""
        if self.price is None:
            return
        async with self.money:
            self.budget.settle(booked, cost)
            self.unsettled -= 1
            self.tally.usd = (self.tally.usd or 0.0) + cost
            self.money.notify_all()


def _pause(failed: int) -> float:
    """Return a random pause in seconds before the next try; random, so that retries do not coincide."""
    return random.uniform(0, min(LONGEST_PAUSE, PAUSE * 2 ** (failed - 1)))


def client(spec: OpenAIJudge, key: str) -> openai.AsyncOpenAI:
    """Return a client for this event loop. It does not retry: `JudgingSession` does."""
    ask_directly(spec.base_url or OPENAI)
    return openai.AsyncOpenAI(api_key=key, base_url=spec.base_url or OPENAI, max_retries=0, timeout=spec.timeout,
                              http_client=openai.DefaultAioHttpClient())  # half the processor time of the default


def logprobs_body(spec: OpenAIJudge, request: JudgeRequest) -> dict[str, Any]:
    """Return the request of Betley et al.: one token, with its most likely alternatives."""
    return {"model": spec.model, "messages": [message.to_dict() for message in request.messages], "max_tokens": 1,
            "temperature": 0, "logprobs": True, "top_logprobs": spec.top_logprobs}


def samples_body(spec: OpenAIJudge, request: JudgeRequest, count: int) -> dict[str, Any]:
    """Return a request for sampled numbers."""
    return {"model": spec.model, "messages": [message.to_dict() for message in request.messages],
            "max_tokens": SAMPLE_TOKENS, "temperature": 1, "n": count}


def number_body(spec: OpenAIJudge) -> dict[str, Any]:
    """Return a request that shows how a judge writes a number of two digits."""
    message = {"role": "user", "content": f"Reply with the number {TEST_NUMBER} and with nothing else."}
    return {"model": spec.model, "messages": [message], "max_tokens": 1, "temperature": 0, "logprobs": True,
            "top_logprobs": spec.top_logprobs}


def is_whole(tokens: Sequence[str]) -> bool:
    """Return whether the number is among the most likely first tokens of the reply to `number_body`.

    A small model may answer something else; a judge that spells digit by digit cannot have it even among these.
    """
    return any(replies.number(token) == TEST_NUMBER for token in tokens)


def key_of(spec: OpenAIJudge, environment: Callable[[str], str | None] = os.environ.get) -> str:
    """Return the key from the environment. OpenAI's key goes to another server only if the profile says so."""
    variable = spec.key_from or ("OPENAI_API_KEY" if spec.base_url is None else None)
    if variable is None:
        return NO_KEY
    key = (environment(variable) or "").strip()
    if not key:
        raise JudgeError(f"The environment variable {variable} is not set: it must hold the API key of the judge "
                         f"'{spec.model}'. Keys are read from the environment only.")
    return key


def price_of(spec: OpenAIJudge) -> Price | None:
    """Return the price of the judge's model, if the list has one."""
    price = price_list().models.get(spec.model)
    if price is None and spec.max_usd is not None:
        raise JudgeError(f"'max_usd' is set, and params/prices.yaml has no price for '{spec.model}', so the limit "
                         "cannot be enforced. Add the price with its source, or leave 'max_usd' out.")
    return price
