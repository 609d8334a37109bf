"""A judge behind the OpenAI API or any compatible server: one request per score.

As many requests run concurrently as the server accepts. Transient errors are retried with growing pauses, never sooner
than the server asks; a permanent error stops all requests with one message. The event loop runs in a separate thread,
because Jupyter's thread already has a loop; the client exists as long as that loop.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial

from anyio.from_thread import start_blocking_portal
from tqdm import tqdm

from emlib.config import OpenAIJudge
from emlib.config.providers import SAMPLES
from emlib.core import progress
from emlib.core.errors import JudgeError, JudgeWaits
from emlib.core.progress import say
from emlib.judging import faults, replies
from emlib.judging.access import api_key, client, price_of
from emlib.judging.bodies import is_whole, logprobs_body, number_body, samples_body
from emlib.judging.faults import KEPT, BadReply, PromptRefused, TransientFault
from emlib.judging.judge_batch import NOT_HAD, Keep
from emlib.judging.money import Budget
from emlib.judging.reservations import RENEWAL, Reservations
from emlib.judging.rubrics import JudgeRequest, Score
from emlib.judging.sending import NoLogprobs, Sender

PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds: the longest pause before the second try, doubled per failure; the cap
GIVEN_UP = 5  # requests given up in a row, with none answered meanwhile, before the server counts as down
MOST_WITHOUT_LOGPROBS = 5  # replies without log-probabilities, and none with, before the server counts as having none
LOOK_AGAIN = 0.5  # seconds between looks for the scores that another process is asking for
GRACE = 10.0  # seconds to wait for requests under way when the session stops
MOST_WORDS = 20  # replies that are neither numbers nor words of the rubric, and no number, before the judge is stopped
FEWEST_ANSWERS = 5  # to which these replies are, because one answer may be such that no judge gives it a number


class ApiJudge:
    """A `Scorer` over the network."""

    def __init__(self, spec: OpenAIJudge, budget: Budget) -> None:
        """Read the key from the environment (`api_key`), and the model's price from the list (`price_of`)."""
        self.spec, self.budget = spec, budget
        self.key, self.price = api_key(spec), price_of(spec)

    def __call__(self, requests: Sequence[JudgeRequest], keep: Keep) -> None:
        """Request every score. Failed ones carry `NOT_HAD` with the reason and are not cached.

        Raises:
            JudgeError: the server refuses the key, the model or a request; or the budget or quota is used up.
        """
        with (progress.bar(None, f"scores by {self.spec.model}", "score", total=len(requests)) as bar,
              start_blocking_portal() as portal):
            failure = portal.call(self._all, requests, keep, bar)
        if failure is not None:
            raise failure

    async def _all(self, requests: Sequence[JudgeRequest], keep: Keep, bar: tqdm) -> JudgeError | None:
        """Return the error that stopped all requests; the caller raises it, so that its traceback holds no key."""
        async with client(self.spec, self.key) as server:
            session = JudgingSession(self.spec, Sender(self.spec, self.price, self.budget, self.key, server), keep, bar)
            failure = await session.score(requests)
        say(f"{self.spec.model}: {session.summary}")
        return failure


class JudgingSession:
    """The work of one event loop: requests in, scores out."""

    def __init__(self, spec: OpenAIJudge, sender: Sender, keep: Keep, bar: tqdm) -> None:
        self.spec, self.sender, self.keep, self.bar = spec, sender, keep, bar
        self.done = self.failed = self.tokens = 0
        self.reservations = Reservations(sender.budget.cache, spec.address)
        self.waiting: deque[JudgeRequest] = deque()
        self.elsewhere: list[JudgeRequest] = []  # requests for scores that another process is asking for
        self.in_batches = 0  # of them, those that wait in a batch
        self.told_to_wait = False
        self.given_up = self.without_logprobs = 0
        self.has_logprobs = False
        self.whole_numbers: bool | None = None if spec.samples is None else True
        self.held: list[tuple[JudgeRequest, Score]] = []  # words, until the judge has given a number
        self.speechless = False  # whether it has shown that it gives no numbers
        self.understood = False  # whether it has given a number, or a word of the rubric
        self._asking = asyncio.Lock()

    async def score(self, requests: Sequence[JudgeRequest]) -> JudgeError | None:
        """Send every request that no other process sends; return the error that stopped them, or None."""
        self.waiting.extend(requests)
        renewing = asyncio.ensure_future(self._renew())
        try:
            while self.waiting:
                await self._work()
                await self._wait_for_others()
        except JudgeError as error:
            return JudgeError(*error.args)  # a new one: the old one refers to the client's errors, which hold the key
        finally:
            renewing.cancel()
            self._release()
            self.reservations.release_all()
        return JudgeWaits(
            f"{self.in_batches} scores by {self.spec.model} are in batches that were sent before, which take up to 24 "
            "hours. Run again later: finished batches are collected then. To have these scores sooner, cancel the "
            "batches on the server: what they leave is then requested singly.") if self.in_batches else None

    async def _work(self) -> None:
        """Send the waiting requests by many workers: twice as many as may be under way, as some wait for a retry."""
        async def work() -> None:
            while self.waiting:
                await self._one(self.waiting.popleft())

        workers = [asyncio.ensure_future(work())
                   for _ in range(min(2 * self.spec.max_concurrency, len(self.waiting)))]
        try:
            await asyncio.gather(*workers)
        except JudgeError as error:
            self.waiting.clear()  # nothing more is sent, and answers that may be paid for already are waited for
            self.sender.stopped = self.sender.stopped or error
            if self.sender.under_way:
                await asyncio.wait(self.sender.under_way, timeout=GRACE)
            raise
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _wait_for_others(self) -> None:
        """Wait a little for the scores that other processes are asking for, and look again; batches take too long."""
        sent = self.reservations.in_batches(one.key(self.spec.identity) for one in self.elsewhere)
        self.in_batches += len(sent)
        self.elsewhere = [one for one in self.elsewhere if one.key(self.spec.identity) not in sent]
        if not self.elsewhere:
            return
        self._release()  # others may wait for these
        if not self.told_to_wait:
            say(f"{self.spec.model}: {len(self.elsewhere)} scores are being asked for by another process; waiting for "
                "them")
            self.told_to_wait = True
        await asyncio.sleep(LOOK_AGAIN)
        self.waiting.extend(self.elsewhere)
        self.elsewhere.clear()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL)
            self.reservations.renew()

    async def _one(self, request: JudgeRequest) -> None:
        """Get one score, unless it is there by now, or another process is asking for it."""
        taken = self.reservations.take(request.key(self.spec.identity))
        if taken is False:
            self.elsewhere.append(request)
        elif isinstance(taken, Score):
            self.keep(request, taken)
            self.bar.update()
        else:
            await self._ask(request)

    async def _ask(self, request: JudgeRequest) -> None:
        reached = self.sender.reached
        try:
            found = await self._tried(request)
        except PromptRefused as error:
            found = Score(None, reason=error.reason)
        except TransientFault as error:
            if error.refused is not None:
                found = Score(None, reason=error.refused)
            else:
                self._give_up(error, reached)
                found = Score(None, reason=f"{NOT_HAD} ({self.spec.tries} tries; the last: {error.reason})",
                              lasting=False)
        self._show(found)
        self._keep_or_hold(request, found)

    async def _tried(self, request: JudgeRequest) -> Score:
        """Return the score, with retries up to the number of tries that the profile allows."""
        for failed in range(1, self.spec.tries):
            try:
                return await self._score(request)
            except TransientFault as error:
                pause = random.uniform(0, min(LONGEST_PAUSE, PAUSE * 2 ** (failed - 1)))  # so that they do not coincide
                wait = max(pause, error.after)
            await asyncio.sleep(wait)
        return await self._score(request)

    def _give_up(self, error: TransientFault, reached: int) -> None:
        """Stop if the server seems to be down: it answered nothing while `GIVEN_UP` requests were tried."""
        self.given_up = self.given_up + 1 if reached == self.sender.reached else 0
        if self.given_up >= GIVEN_UP and self.waiting:
            raise JudgeError(f"{self.spec.address} does not answer: {GIVEN_UP} requests were given up after "
                             f"{self.spec.tries} tries each, and none was answered meanwhile; the last: "
                             f"{error.reason}. Run again when the server is up. {KEPT}")

    def _keep_or_hold(self, request: JudgeRequest, found: Score) -> None:
        """Keep a score. Words that the rubric does not name are held until the judge has shown that it can score.

        Raises:
            JudgeError: it has said nothing else in `MOST_WORDS` replies, to `FEWEST_ANSWERS` answers.
        """
        if self.understood or replies.other_word(request, found) is None:
            self._settle(request, found)
            self.understood = self.understood or found.mass is not None
        else:
            self.held.append((request, found))
            if (len(self.held) * (self.spec.samples or 1) >= MOST_WORDS
                    and len({(one.question.shown, one.answer) for one, _ in self.held}) >= FEWEST_ANSWERS):
                self.understood = self.sender.budget.cache.has_value_by(self.spec.identity)
                self.speechless = not self.understood
                if self.speechless:
                    raise without_numbers(self.spec, [str(replies.other_word(*one)) for one in self.held])
        if self.understood:
            self._release()

    def _release(self) -> None:
        """Keep the words that were held, as what the judge says to these answers; not if it only says words."""
        for request, found in [] if self.speechless else self.held:
            self._settle(request, found)
        self.held.clear()

    def _settle(self, request: JudgeRequest, found: Score) -> None:
        self.keep(request, found)
        self.reservations.release(request.key(self.spec.identity))

    @property
    def summary(self) -> str:
        """Counts and cost of the session so far."""
        money = "" if self.sender.usd is None else f", ${self.sender.usd:.4f}"
        return f"{self.done} scores, {self.failed} failed, {self.tokens} tokens{money}"

    def _show(self, found: Score) -> None:
        self.done, self.failed = self.done + found.lasting, self.failed + (not found.lasting)
        self.tokens += sum(found.tokens)
        self.bar.set_postfix_str(self.summary, refresh=False)
        self.bar.update()

    async def _score(self, request: JudgeRequest) -> Score:
        """Request one score: one request, or several where the score is a mean of samples. A label is no mean."""
        if self.spec.samples is None and self.sender.supported.logprobs:
            try:
                return await self._expected(request)
            except NoLogprobs:  # told by the server; its log-probabilities will not come
                pass
        return await self._sampled(request, 1 if request.wants_label else self.spec.samples or SAMPLES)

    async def _expected(self, request: JudgeRequest) -> Score:
        try:
            (likeliest, word), tokens = await self.sender.send(
                lambda: logprobs_body(self.spec, request, self.sender.supported),
                partial(replies.likeliest, label=request.wants_label))
        except BadReply as error:
            self.without_logprobs += error.reason in (replies.NO_LOGPROBS, replies.OF_THOUGHTS)
            if self.without_logprobs < MOST_WITHOUT_LOGPROBS or self.has_logprobs:
                raise
            why = "" if error.reason == replies.NO_LOGPROBS else f" of its score: {error.reason}"
            raise JudgeError(f"'{self.spec.model}' gives no log-probabilities here{why}. Add 'samples: 10' to the "
                             "profile's judge: the score is then the mean of 10 sampled ones.") from None
        self.has_logprobs = True
        if not request.wants_label:
            await self._check_numbers([token for token, _ in likeliest])
        return replies.from_distribution(likeliest, word, tokens, label=request.wants_label)

    async def _sampled(self, request: JudgeRequest, samples: int) -> Score:
        texts: list[str] = []
        read = written = 0
        while len(texts) < samples:  # some servers return one choice, however many are requested
            limit, missing = self.sender.supported.sample_tokens, samples - len(texts)
            more, tokens = await self.sender.send(
                partial(samples_body, self.spec, request, missing, self.sender.supported), replies.texts)
            read, written = read + tokens[0], written + tokens[1]
            if any(cut for _, cut in more) and self._gives_longer(limit):
                continue  # none of these is kept: those that thought briefly are no fair sample
            texts += [f"{text}…" if cut else text for text, cut in more]
        return replies.from_samples(texts[:samples], (read, written), label=request.wants_label)

    def _gives_longer(self, limit: int) -> bool:
        """Give the model more tokens to think, unless another request did so since this one was sent."""
        if self.sender.supported.sample_tokens > limit:
            return True
        learnt = self.sender.supported.think_longer()
        if learnt is not None:
            self.sender.tell(learnt)
        return learnt is not None

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
                try:
                    (asked, _), _ = await self.sender.send(
                        lambda: number_body(self.spec, self.sender.supported), replies.likeliest)
                except PromptRefused as error:  # of the test, not of the answer that is judged
                    raise TransientFault(error.reason) from None
                self.whole_numbers = is_whole([token for token, _ in asked])
            if self.whole_numbers is False:
                raise faults.by_digits(self.spec.model)


def without_numbers(spec: OpenAIJudge, said: Sequence[str]) -> JudgeError:
    """Return the error for a judge that said these words, and gives no numbers."""
    quoted = ", ".join(f"{word} ({count} times)" for word, count in Counter(said).most_common(3))
    way_out = ("Choose another judge, or a rubric that asks for one number" if spec.samples is not None else
               "If it thinks first, or writes the number after other words, add 'samples: 10' to the profile's judge, "
               "without 'batch'; else choose another judge")
    return JudgeError(f"'{spec.model}' gives no numbers from 0 to 100: it was asked for {len(said)} scores and gave "
                      f"none. It said {quoted}. {way_out}. These replies are not kept.")
