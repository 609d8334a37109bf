"""One request to a judge's server at a time: within the budget, in the form that the model takes, at the server's pace.

Errors are raised by remedy (`emlib.judging.faults`). What the model does not take is learnt from the server's own error
(`emlib.judging.bodies`), told once, and the request is sent again in the form that it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import httpx2
import openai

from emlib.config import OpenAIJudge
from emlib.config.providers import Price
from emlib.core.errors import JudgeError
from emlib.core.progress import say
from emlib.judging import faults, replies
from emlib.judging.access import fault_of
from emlib.judging.bodies import known_support, most_used, number_body, save_support
from emlib.judging.faults import KEPT, Failure, Fault, PromptRefused, Rejected, TransientFault
from emlib.judging.money import Budget
from emlib.judging.server_errors import error_in, error_of
from emlib.judging.slots import Slots

MOST_LESSONS = 8  # forms of one request
NOT_TAKEN = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})
Tokens = tuple[int, int]
Found = TypeVar("Found")


class NoLogprobs(Exception):
    """The model gives no log-probabilities: its server has said so."""


class Sender:
    """Sends the requests of one session."""

    def __init__(self, spec: OpenAIJudge, price: Price | None, budget: Budget, key: str,
                 server: openai.AsyncOpenAI) -> None:
        self.spec, self.price, self.budget, self.key, self.server = spec, price, budget, key, server
        self.supported = known_support(budget.cache, spec)
        self.usd = None if price is None else 0.0  # the cost so far
        self.slots, self.money = Slots(spec.max_concurrency), asyncio.Condition()
        self.unsettled = 0  # requests whose cost is booked and not yet known
        self.answered = 0  # requests
        self.reached = 0  # requests after which the server is known to be up: answered, or refused with a reason
        self.under_way: set[asyncio.Task[Any]] = set()  # those whose request is with the server
        self.stopped: JudgeError | None = None  # after which nothing more is sent
        self._answered_since_refusal = False
        self._probing = asyncio.Lock()

    async def send(self, build: Callable[[], dict[str, Any]], read: Callable[[Any], Found]) -> tuple[Found, Tokens]:
        """Send a request, in the form that the model takes; return what `read` finds in the reply, and the tokens used.

        Raises:
            TransientFault, PromptRefused, JudgeError, NoLogprobs: by remedy.
        """
        for _ in range(MOST_LESSONS):
            body, found, tokens, fault = await self._in_turn(build, read)
            if fault is None:
                assert found is not None
                return found, tokens or (0, 0)
            if not isinstance(fault, Rejected):  # raised here, so that it does not refer to the client's error
                raise fault
            rejected = fault
            if build() == body:  # else another request has learnt what this one might
                learnt = self.supported.learn(fault.error)
                if learnt is None:
                    break
                self.tell(f"{learnt} (the server says: {fault.reason})")
        await self._blame(rejected)

    def tell(self, learnt: str) -> None:
        """Write to the log what was found out about the model, and remember it."""
        save_support(self.budget.cache, self.spec, self.supported)
        say(f"{self.spec.model}: {learnt}. It is asked accordingly from now on.")

    async def _blame(self, fault: Rejected) -> NoReturn:
        """Raise for a rejected request: it is this prompt's fault if the server takes others, and the request's if not.

        Whether it takes others is known if it answered one since the last refusal; else a harmless request tells.
        """
        if not self.answered and (fault.error.unsupported or fault.error.names & NOT_TAKEN):
            raise self._stop(fault)
        async with self._probing:
            if not self._answered_since_refusal:
                *_, other = await self._in_turn(lambda: number_body(self.spec, self.supported), replies.texts)
                if isinstance(other, Rejected | PromptRefused):
                    raise self._stop(fault)
                if other is not None:
                    raise other
            self._answered_since_refusal = False
        raise PromptRefused(f"the server refuses the prompt: {fault.reason}")

    def _stop(self, fault: Rejected) -> JudgeError:
        self.stopped = fault.stopping()
        return self.stopped

    async def _in_turn(self, build: Callable[[], dict[str, Any]], read: Callable[[Any], Found]) -> tuple[
            dict[str, Any], Found | None, Tokens | None, Failure | None]:
        """Send one request in a slot and within the budget; return it, what was found, the tokens, and the fault."""
        async with self.slots as started:
            if self.stopped is not None:  # by another request, while this one waited
                raise JudgeError(*self.stopped.args)
            body = build()  # as late as this, with all that is known about the model
            if "logprobs" in body and not self.supported.logprobs:
                raise NoLogprobs
            booked = await self._book(body)
            task = asyncio.current_task()
            assert task is not None
            self.under_way.add(task)
            try:
                found, tokens, fault = await self._try(body, read)
            finally:
                self.under_way.discard(task)
            if isinstance(fault, TransientFault) and fault.overloaded:
                self.slots.refused(started)
            elif isinstance(fault, JudgeError):
                self.stopped = fault
            elif fault is None or (isinstance(fault, PromptRefused) and fault.billed):
                self.answered += 1
                self._answered_since_refusal = True
                self.slots.answered(started)
            self.reached += fault is None or isinstance(fault, PromptRefused | Rejected)
            await self._settle(booked, self._cost(booked, tokens, fault))
        return body, found, tokens, fault

    async def _try(self, body: dict[str, Any], read: Callable[[Any], Found]) -> tuple[
            Found | None, Tokens | None, Failure | None]:
        try:
            async with asyncio.timeout(self.spec.timeout):
                # The client's low-level call: its high-level one spends more time on type checks than all else takes.
                answer = await self.server.post("/chat/completions", body=body, cast_to=httpx2.Response)
        except openai.APIError as error:
            return None, None, fault_of(error, self.spec.model, self.key)
        except TimeoutError:
            return None, None, TransientFault("no answer in time", billed=True)
        except UnicodeEncodeError:
            return None, None, PromptRefused("the text holds half a character (a lone surrogate), which cannot be sent")
        return self._read(answer.content, body, read)

    def _read(self, content: bytes, body: dict[str, Any], read: Callable[[Any], Found]) -> tuple[
            Found | None, Tokens | None, Failure | None]:
        """Read a reply of status 200, which may be an error all the same."""
        tokens: Tokens | None = None
        try:
            reply = replies.parse(content)
            tokens = replies.usage(reply, most_used(body))
            error = error_in(reply)
            if error is not None:
                return None, tokens, faults.of_reply(error_of(error, self.key), self.spec.model)
            return read(reply), tokens, None
        except Fault as fault:
            return None, tokens, fault.with_traceback(None)

    def _cost(self, booked: float, tokens: Tokens | None, fault: Failure | None) -> float:
        """Return a request's cost by its tokens; where they are unknown, the booked maximum if it may be billed."""
        if tokens is not None and self.price is not None:
            return self.price.of(tokens)
        return booked if fault is None or (isinstance(fault, Fault) and fault.billed) else 0.0

    async def _book(self, body: dict[str, Any]) -> float:
        """Book the most that a request can cost; where the budget is short, wait until other requests are settled."""
        if self.price is None:
            return 0.0
        most = self.price.of(most_used(body))
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
            self.usd = (self.usd or 0.0) + cost
            self.money.notify_all()
